"""What a job wants besides its command: one typed description, from which the command line makes its options.

The same description goes into a job that is sent to a running cluster and into every manifest, so that a setting has
one name, one type and one check. How many workers there are, and what each takes, is in the config's `cluster.`.
"""

import re
import shlex
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from genrec.config import RUN_NAME_PATTERN, ExperimentConfig
from genrec.config_data import Section
from genrec.config_errors import explain_validation_error
from genrec.errors import ConfigError

Platform = Literal["kuberay", "kuberay-cluster", "slurm", "aws", "gcp"]

WORKER_LABELS = {"genrec-role": "train"}
DATA_LABELS = {"genrec-role": "data"}
"""Labels of the machines in manifests; `placement.` of the rendered command asks for them."""

MADE_BY = "Made by `genrec submit --render`: change the config or the options and render it again, not this file."

KUBERNETES_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"

CONTAINER_STORAGE = "/mnt/genrec"
"""Where manifests mount the shared storage when `storage` does not say."""


class EntrypointOptions(Section):
    """The command itself: it starts the workers and waits for them, on the head node unless it asks for resources."""

    name: str | None = Field(None, pattern=RUN_NAME_PATTERN, description="name of the job; default: the run's name")
    storage: str | None = Field(
        None,
        pattern=r"^/[\w./+@-]*$",
        description="folder that all machines share: runs go to STORAGE/runs, prepared sets to STORAGE/prepared",
    )
    packages: Literal["image", "constraints"] = Field(
        "image", description="image: the cluster has genrec's packages; constraints: install those of constraints.txt"
    )
    exclude: list[str] = Field([], description="file or pattern that is not shipped; any number")
    entrypoint_cpus: float | None = Field(None, ge=0, description="CPUs reserved for the command itself")
    entrypoint_gpus: float | None = Field(None, ge=0, description="GPUs reserved for the command itself")
    entrypoint_memory: float | None = Field(None, gt=0, description="GiB of memory reserved for the command itself")
    entrypoint_label: list[str] = Field([], description="KEY=VALUE that the command's machine must have; any number")

    @field_validator("entrypoint_label")
    @classmethod
    def _pairs(cls, values: list[str]) -> list[str]:
        return checked_pairs(values)


class ManifestOptions(Section):
    """The machines that a manifest asks for. Their number follows from `cluster.workers` and workers_per_machine."""

    image: str = Field("genrec:latest", pattern=r"^[\w./:@-]+$", description="image made from launch/Dockerfile")
    workers_per_machine: int = Field(1, ge=1, description="training workers that share a machine")
    gpu_type: str | None = Field(
        None, pattern=r"^[\w.-]+$", description="as the platform calls it: NVIDIA-H100-80GB-HBM3, h100, nvidia-tesla-t4"
    )
    machine_type: str | None = Field(
        None, pattern=r"^[\w.-]+$", description="machine that trains, on AWS or GCP, as p5.48xlarge, a3-highgpu-8g"
    )
    memory: int = Field(32, ge=1, description="GiB of memory of a machine")
    data_machines: int = Field(1, ge=0, description="machines without GPUs that read data; 0 lets the others do it")
    data_cpus: int = Field(4, ge=2, description="CPUs of each of them")
    spot: bool = Field(False, description="train on machines that may be taken away; cluster.workers must be a range")
    queue: str | None = Field(None, pattern=r"^[\w.-]+$", description="Kueue's local queue, or Slurm's partition")
    volume: str | None = Field(
        None,
        pattern=r"^[\w][\w./:-]*$",
        description="the storage: a PersistentVolumeClaim, or HOST:/PATH of NFS on a cloud",
    )
    time_limit: int = Field(24 * 60, ge=1, description="minutes after which the job is ended")


class PlatformOptions(Section):
    """What only one platform of a manifest knows."""

    namespace: str = Field("default", pattern=r"^[a-z0-9-]{1,63}$", description="Kubernetes namespace")
    spot_label: str = Field(
        "cloud.google.com/gke-spot=true",
        pattern=r"^[\w./-]+=[\w.-]+$",
        description="Kubernetes label of spot machines (EKS: eks.amazonaws.com/capacityType=SPOT)",
    )
    service_account: str | None = Field(
        None, pattern=KUBERNETES_NAME, description="Kubernetes service account of the pods, for rights on a storage"
    )
    secret: str | None = Field(
        None,
        pattern=KUBERNETES_NAME,
        description="Kubernetes secret whose keys become variables of the pods, as WANDB_API_KEY",
    )
    region: str | None = Field(None, pattern=r"^[a-z0-9-]+$", description="of AWS or GCP, as us-west-2")
    project: str | None = Field(None, pattern=r"^[a-z][a-z0-9-]{4,28}[a-z0-9]$", description="project of Google Cloud")
    machine_image: str | None = Field(
        None,
        pattern=r"^[\w][\w./-]*$",
        description="what machines of a cloud start from, with Docker: ami-..., projects/P/global/images/family/F",
    )


class JobOptions(Section):
    """Everything that `genrec submit` can be told."""

    entrypoint: EntrypointOptions = Field(EntrypointOptions(), description="the command itself")
    manifest: ManifestOptions = Field(ManifestOptions(), description="the machines of a manifest")
    platform: PlatformOptions = Field(PlatformOptions(), description="what only one platform knows")


class JobDescription(Section):
    """One job, complete: what manifests are rendered from. `words` is the command, without `genrec`."""

    words: tuple[str, ...] = Field(min_length=1, description="the command")
    name: str = Field(pattern=RUN_NAME_PATTERN, description="of the job")
    config: ExperimentConfig = Field(description="what the command trains")
    options: JobOptions = Field(description="what was asked for")

    @model_validator(mode="after")
    def _spot(self) -> "JobDescription":
        cluster = self.config.cluster
        if self.options.manifest.spot and cluster.min_workers == cluster.max_workers:
            raise ValueError(
                f"spot machines may be taken away, and cluster.workers ({cluster.workers}) allows no fewer; use a "
                f"range as cluster.workers=[1,{cluster.max_workers}], or leave --spot out"
            )
        return self

    @property
    def storage(self) -> str:
        """The shared folder, as the job's machines see it."""
        return self.options.entrypoint.storage or CONTAINER_STORAGE

    @property
    def machines(self) -> tuple[int, int]:
        """The fewest and the most machines that train."""
        each, cluster = self.options.manifest.workers_per_machine, self.config.cluster
        return -(-cluster.min_workers // each), -(-cluster.max_workers // each)

    @property
    def machine_gpus(self) -> int:
        """Whole GPUs of a machine that trains."""
        return _whole(self.options.manifest.workers_per_machine * self.config.cluster.gpus_per_worker)

    @property
    def machine_cpus(self) -> int:
        """CPUs of a machine that trains: its workers' and, where no other machine reads data, one for that."""
        return self._worker_cpus if self.options.manifest.data_machines else self.shared_machine_cpus

    @property
    def shared_machine_cpus(self) -> int:
        """CPUs of a machine that trains and reads data."""
        return self._worker_cpus + 1

    @property
    def _worker_cpus(self) -> int:
        return max(_whole(self.options.manifest.workers_per_machine * self.config.cluster.cpus_per_worker), 1)


def checked_options(values: dict[str, Any]) -> JobOptions:
    """The options from flat values, as the command line has them; raises ConfigError with every problem."""
    parts: dict[str, type[Section]] = {
        "entrypoint": EntrypointOptions, "manifest": ManifestOptions, "platform": PlatformOptions,
    }  # fmt: skip
    nested = {part: {k: v for k, v in values.items() if k in model.model_fields} for part, model in parts.items()}
    return explain_validation_error(JobOptions, nested, "genrec submit")


def describe(words: tuple[str, ...], config: ExperimentConfig, options: JobOptions) -> JobDescription:
    """The whole job; raises ConfigError when its parts do not fit."""
    name = options.entrypoint.name or config.name
    values = {"words": words, "name": name, "config": config, "options": options}
    return explain_validation_error(JobDescription, values, "genrec submit")


_CLOUDS_ALONE = ("machine_type", "region", "machine_image")
_KUBERNETES_ALONE = ("namespace", "spot_label", "service_account", "secret")
UNKNOWN_TO: dict[Platform, tuple[str, ...]] = {
    "kuberay": (*_CLOUDS_ALONE, "project", "entrypoint_memory", "entrypoint_label"),
    "kuberay-cluster": (*_CLOUDS_ALONE, "project", "time_limit"),
    "slurm": (*_CLOUDS_ALONE, *_KUBERNETES_ALONE, "project", "image", "spot", "data_machines", "data_cpus", "volume"),
    "aws": (*_KUBERNETES_ALONE, "project", "queue", "time_limit", "gpu_type"),
    "gcp": (*_KUBERNETES_ALONE, "queue", "time_limit"),
}
"""Options for which a platform has no words."""


def refuse_unknown(job: JobDescription, platform: Platform) -> None:
    """Raises ConfigError for an option that the manifest of a platform would leave out without a word."""
    found = [name for name in _said(job.options) if name in UNKNOWN_TO[platform]]
    if found:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in found)
        raise ConfigError(f"--render {platform} has no place for {options}; leave that out.")


def _said(options: JobOptions) -> Iterator[str]:
    """Names of options that are not as by default."""
    for section in (options.entrypoint, options.manifest, options.platform):
        for name, field in type(section).model_fields.items():
            if getattr(section, name) != field.default:
                yield name


def platform_name(name: str, most: int) -> str:
    """A name as Kubernetes and Google Cloud allow it: lower case, digits and dashes, a letter first."""
    text = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if not text[:1].isalpha():
        text = f"genrec-{text}"
    return text[:most].strip("-")


def submit_line(job: JobDescription) -> str:
    """The command that sends this job to the cluster of a manifest, once its dashboard is at hand on this computer."""
    words = shlex.join(["genrec", "submit", "--address", "http://127.0.0.1:8265", "--storage", job.storage, "--"])
    return f"{words} {shlex.join(job.words)}"


def checked_pairs(values: list[str]) -> list[str]:
    """`KEY=VALUE` texts; raises ValueError for anything else."""
    for value in values:
        name, separator, text = value.partition("=")
        if not (name and separator and text):
            raise ValueError(f"{value!r} must be KEY=VALUE, as ray.io/node-group=cpu")
    return values


def as_pairs(values: list[str]) -> dict[str, str]:
    """The checked pairs as a dictionary."""
    return dict(value.split("=", 1) for value in values)


def _whole(number: float) -> int:
    return max(int(number) + (number > int(number)), 0)
