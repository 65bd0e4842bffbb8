"""`genrec submit --render PLATFORM`: one description of a job, as the platform wants it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genrec.errors import ConfigError
from genrec.launch.clouds import aws, gcp
from genrec.launch.job_command import STAYS, read_command
from genrec.launch.kuberay import CONFIG_PATH, ray_cluster, ray_job
from genrec.launch.options import DATA_LABELS, WORKER_LABELS, JobDescription, JobOptions, Platform, describe
from genrec.launch.slurm import batch_script

WAIT_S = 1800
"""Machines of a new cluster come one by one; the run waits this long for them, unless placement.wait_s says."""

RENDERERS: dict[Platform, tuple[str, Callable[[JobDescription], str]]] = {
    "kuberay": ("rayjob.yaml", ray_job),
    "kuberay-cluster": ("raycluster.yaml", ray_cluster),
    "slurm": ("job.sh", batch_script),
    "aws": ("aws.yaml", aws),
    "gcp": ("gcp.yaml", gcp),
}


def render_job(
    platform: Platform, words: Sequence[str], given: Mapping[str, Any], folder: Path, options: JobOptions
) -> tuple[str, str]:
    """(file name, text) of the manifest; raises ConfigError when the command or the options do not fit.

    `words` is the command after `genrec`, `given` its parsed parameters, `folder` where its paths begin.
    """
    command = read_command(words, given, folder, STAYS)
    if command.config is None:
        raise ConfigError(
            f"--render {platform} needs a command with a config, because its `cluster.` says how many machines there "
            "are; use one such as `genrec train CONFIG`."
        )
    if platform == "kuberay" and words[0] == "tune":
        raise ConfigError(
            "--render kuberay makes a manifest that carries one config, and a sweep has two files; make a cluster with "
            "--render kuberay-cluster, and send the sweep there with `genrec submit`."
        )
    added = []
    if platform == "slurm":  # machines are there before the command starts, and all alike
        storage = options.entrypoint.storage or STAYS
    else:
        storage = STAYS  # KubeRay begins there, and for a cluster file `genrec submit --storage` says it
        placement = command.config.placement
        added += [] if placement.wait_s else [f"placement.wait_s={WAIT_S}"]
        if options.manifest.data_machines and placement.worker_labels is None:
            added += [f"placement.worker_labels={_flow(WORKER_LABELS)}", f"placement.data_labels={_flow(DATA_LABELS)}"]
    command = read_command(words, given, folder, storage, added)
    assert command.config is not None
    sent = _with_config_of_manifest(words, given) if platform == "kuberay" else command.words
    name, render = RENDERERS[platform]
    return name, render(describe(tuple(sent), command.config, options))


def _with_config_of_manifest(words: Sequence[str], given: Mapping[str, Any]) -> list[str]:
    """The command with the config that the manifest carries; what overrides it is in there already."""
    overrides, file = list(given.get("overrides") or []), str(given["file"])
    return [CONFIG_PATH if Path(word) == Path(file) else word for word in words if word not in overrides]


def _flow(labels: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in labels.items()) + "}"
