"""Cluster files for `ray up` on AWS and Google Cloud: `genrec submit --address` then sends jobs to the cluster.

Their shape is Ray's own (ray/autoscaler/ray-schema.json); machines are described in the words of each cloud.
"""

import shlex
from typing import Any
from urllib.parse import urlsplit

from genrec.errors import ConfigError
from genrec.launch.manifest_yaml import dump
from genrec.launch.options import (
    DATA_LABELS,
    MADE_BY,
    WORKER_LABELS,
    JobDescription,
    platform_name,
    refuse_unknown,
    submit_line,
)

DISK_GIB = 200
MAX_NAME = 35
"""Google Cloud allows 63 characters for `ray-NAME-worker-12345678-compute`."""
IDLE_MINUTES = 15
DRIVER_WAIT_S = 600
"""Time for a new machine of Google Cloud to install NVIDIA's driver at its first start."""
CONTAINER_USER = 1000
"""Of the image, launch/Dockerfile."""
_AWS = {"region": "us-west-2", "cpu": "m6i.2xlarge", "data": "m6i.2xlarge", "head": "m6i.large"}
_GCP = {"region": "us-west1", "cpu": "n2-standard-8", "data": "n2-standard-8", "head": "n2-standard-2"}

Cluster = dict[str, Any]


def aws(job: JobDescription) -> str:
    """The cluster file for AWS."""
    refuse_unknown(job, "aws")
    manifest, platform = job.options.manifest, job.options.platform
    region = platform.region or _AWS["region"]
    machine = _machine(job, "aws", _AWS["cpu"])
    image = _machine_image(
        job,
        "aws",
        "`aws ssm get-parameter --query Parameter.Value --output text --name /aws/service/deeplearning/ami/x86_64/"
        f"base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id --region {region}` names one",
    )
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": DISK_GIB, "VolumeType": "gp3", "Encrypted": True}}

    def node(machine: str, *, spot: bool = False) -> Cluster:
        config: Cluster = {"InstanceType": machine, "ImageId": image, "BlockDeviceMappings": [disk]}
        # The second version of the metadata service wants a token, which a request forged elsewhere has not.
        config["MetadataOptions"] = {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
        return config | ({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {})

    cluster = _cluster(job, {"type": "aws", "region": region, "cache_stopped_nodes": False})
    cluster["available_node_types"] = _node_types(
        job, node(_AWS["head"]), node(machine, spot=manifest.spot), node(_AWS["data"])
    )
    return dump(_steps(job, "aws.yaml"), cluster)


def gcp(job: JobDescription) -> str:
    """The cluster file for Google Cloud."""
    refuse_unknown(job, "gcp")
    manifest, platform = job.options.manifest, job.options.platform
    if platform.project is None:
        raise ConfigError("--render gcp needs --project, the id of the project whose machines are used.")
    region = platform.region or _GCP["region"]
    chosen = _machine(job, "gcp", _GCP["cpu"])
    source = _machine_image(
        job,
        "gcp",
        "`gcloud compute images list --project deeplearning-platform-release --no-standard-images` names some, as "
        "projects/deeplearning-platform-release/global/images/NAME",
    )

    def node(machine: str, *, gpus: int = 0, spot: bool = False) -> Cluster:
        disk = {"diskSizeGb": DISK_GIB, "sourceImage": source}
        config: Cluster = {
            "machineType": machine,
            "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}],
        }
        scheduling: list[Cluster] = [{"preemptible": True}] if spot else []
        if gpus and machine.startswith("n1-"):  # the other families have their GPUs in their name
            if not manifest.gpu_type:
                raise ConfigError("--machine-type n1-... has GPUs on request; add --gpu-type, as nvidia-tesla-t4.")
            config["guestAccelerators"] = [{"acceleratorType": manifest.gpu_type, "acceleratorCount": gpus}]
        if gpus:
            scheduling.append({"onHostMaintenance": "TERMINATE"})
            config["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
        return config | ({"scheduling": scheduling} if scheduling else {})

    provider = {"type": "gcp", "region": region, "availability_zone": f"{region}-a", "project_id": platform.project}
    cluster = _cluster(job, provider)
    cluster["available_node_types"] = _node_types(
        job, node(_GCP["head"]), node(chosen, gpus=job.machine_gpus, spot=manifest.spot), node(_GCP["data"])
    )
    if job.machine_gpus:
        # The driver is installed at the first start, and Docker must not start before it is there.
        cluster["available_node_types"]["train"]["initialization_commands"] = [
            *cluster["initialization_commands"],
            f"timeout {DRIVER_WAIT_S} bash -c 'until nvidia-smi; do sleep 5; done'",
        ]
    return dump(_steps(job, "gcp.yaml"), cluster)


def _steps(job: JobDescription, file: str) -> str:
    return (
        f"{MADE_BY}\n"
        "ray get-auth-token --generate     # once: ~/.ray/auth_token, which goes to every machine\n"
        f"ray up {file} --yes && ray dashboard {file} &      # the second one forwards port 8265 over SSH\n"
        f"{submit_line(job)}\n"
        f"ray down {file} --yes"
    )


def _cluster(job: JobDescription, provider: Cluster) -> Cluster:
    manifest, storage = job.options.manifest, job.storage
    run_options = ["--ulimit nofile=65536:65536", f"--shm-size={max(manifest.memory // 3, 1)}g"]
    mounting = []
    volume = _volume(job)
    if volume:
        folder = shlex.quote(storage)
        run_options.append(f"-v {folder}:{folder}")
        mounting = [
            "command -v mount.nfs || (sudo apt-get update && sudo apt-get install --yes nfs-common)",
            f"sudo mkdir -p {folder}",
            f"mountpoint -q {folder} || sudo mount -t nfs -o nfsvers=4.1,hard,timeo=600 {volume} {folder}",
            # A new export is root's, and the container's user must write there.
            f'[ "$(stat -c %u {folder})" != 0 ] || sudo chown {CONTAINER_USER}:{CONTAINER_USER} {folder}',
        ]
    start = "ulimit -n 65536; export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0; ray start"
    return {
        "cluster_name": platform_name(job.name, MAX_NAME),
        "max_workers": job.machines[1] + manifest.data_machines,
        "upscaling_speed": 10.0,  # a gang of workers is wanted at once, not by doubling
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": provider,
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "image": manifest.image,
            "container_name": "genrec",
            "pull_before_run": True,
            "run_options": run_options,
        },
        # Machines and this computer must have the same token: `ray get-auth-token --generate` makes it.
        "file_mounts": {"~/.ray/auth_token": "~/.ray/auth_token"},
        "cluster_synced_files": [],
        "initialization_commands": mounting,
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --head --port=6379 --object-manager-port=8076 --num-cpus=0 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=127.0.0.1",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"{start} --address=$RAY_HEAD_IP:6379 --object-manager-port=8076",
        ],
        "head_node_type": "head",
    }


def _node_types(job: JobDescription, head: Cluster, train: Cluster, data: Cluster) -> Cluster:
    most = job.machines[1]
    resources = {"CPU": job.machine_cpus} | ({"GPU": job.machine_gpus} if job.machine_gpus else {})
    types: Cluster = {
        "head": {"resources": {"CPU": 0}, "node_config": head, "max_workers": 0},
        "train": {
            "resources": resources,
            "labels": dict(WORKER_LABELS),
            "node_config": train,
            "min_workers": 0,  # they come with a job, and go when they are idle
            "max_workers": most,
        },
    }
    if number := job.options.manifest.data_machines:
        types["data"] = {
            "resources": {"CPU": job.options.manifest.data_cpus},
            "labels": dict(DATA_LABELS),
            "node_config": data,
            "min_workers": 0,
            "max_workers": number,
        }
    return types


def _machine(job: JobDescription, cloud: str, default: str) -> str:
    chosen = job.options.manifest.machine_type
    if chosen is None and job.machine_gpus:
        example = "p5.48xlarge (8 H100)" if cloud == "aws" else "a3-highgpu-8g (8 H100)"
        raise ConfigError(
            f"--render {cloud} needs --machine-type where cluster.gpus_per_worker asks for GPUs "
            f"({job.machine_gpus} a machine); use one that has them, as {example}."
        )
    return chosen or default


def _machine_image(job: JobDescription, cloud: str, where: str) -> str:
    # Ray's own choice for AWS is of 2022, and its driver is too old for the image's CUDA; for Google it has none.
    image = job.options.platform.machine_image
    if image is None:
        driver = " and NVIDIA's driver for CUDA 13 (580 or newer)" if job.machine_gpus else ""
        raise ConfigError(
            f"--render {cloud} needs --machine-image, what its machines start from, with Docker{driver}: {where}."
        )
    return image


def _volume(job: JobDescription) -> str | None:
    volume = job.options.manifest.volume
    if volume is None:
        for setting, place in (("runs_dir", job.config.runs_dir), ("data.prepared", job.config.data.prepared)):
            if not urlsplit(place).scheme:
                raise ConfigError(
                    f"{setting} ({place}) is a folder, and machines of a cloud share none; add --volume HOST:/PATH, an "
                    "NFS export, or put runs_dir and data.prepared on s3:// or gs://."
                )
        if job.config.writes_codes and job.config.semantic_ids is not None:
            raise ConfigError(
                f"semantic_ids.path ({job.config.semantic_ids.path}) is a folder, and machines of a cloud share none; "
                "add --volume HOST:/PATH, an NFS export."
            )
    elif ":/" not in volume:
        raise ConfigError(f"--volume ({volume}) must be an NFS export on a cloud, as HOST:/PATH; give one.")
    return volume
