"""Cluster files for `ray up` on AWS and Google Cloud: `genrec submit --address` then sends jobs to the cluster.

Their shape is Ray's own (ray/autoscaler/ray-schema.json); machines are described in the words of each cloud.
"""

from typing import Any

from genrec.errors import ConfigError
from genrec.launch.manifest_yaml import dump
from genrec.launch.options import DATA_LABELS, MADE_BY, WORKER_LABELS, JobDescription, submit_line

DISK_GIB = 200
IDLE_MINUTES = 15
_AWS = {"region": "us-west-2", "cpu": "m6i.2xlarge", "data": "m6i.2xlarge", "head": "m6i.large"}
_GCP = {"region": "us-west1", "cpu": "n2-standard-8", "data": "n2-standard-8", "head": "n2-standard-2"}

Cluster = dict[str, Any]


def aws(job: JobDescription) -> str:
    """The cluster file for AWS."""
    manifest = job.options.manifest
    region = manifest.region or _AWS["region"]
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": DISK_GIB, "VolumeType": "gp3", "Encrypted": True}}

    def node(machine: str, *, spot: bool = False) -> Cluster:
        config: Cluster = {"InstanceType": machine, "BlockDeviceMappings": [disk]}
        # The second version of the metadata service wants a token, which a request forged elsewhere has not.
        config["MetadataOptions"] = {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
        return config | ({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {})

    cluster = _cluster(job, {"type": "aws", "region": region, "cache_stopped_nodes": False})
    cluster["available_node_types"] = _node_types(
        job, node(_AWS["head"]), node(_machine(job, "aws", _AWS["cpu"]), spot=manifest.spot), node(_AWS["data"])
    )
    return dump(_steps(job, "aws.yaml"), cluster)


def gcp(job: JobDescription) -> str:
    """The cluster file for Google Cloud."""
    manifest = job.options.manifest
    if manifest.project is None:
        raise ConfigError("--render gcp needs --project, the id of the project whose machines are used.")
    region = manifest.region or _GCP["region"]
    image = "common-gpu-debian-12" if job.machine_gpus else "common-cpu-debian-12"
    source = f"projects/deeplearning-platform-release/global/images/family/{image}"

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
        return config | ({"scheduling": scheduling} if scheduling else {})

    provider = {"type": "gcp", "region": region, "availability_zone": f"{region}-a", "project_id": manifest.project}
    cluster = _cluster(job, provider)
    machine = _machine(job, "gcp", _GCP["cpu"])
    cluster["available_node_types"] = _node_types(
        job, node(_GCP["head"]), node(machine, gpus=job.machine_gpus, spot=manifest.spot), node(_GCP["data"])
    )
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
    if manifest.volume:
        run_options.append(f"-v {storage}:{storage}")
        mounting = [
            f"sudo mkdir -p {storage}",
            f"mountpoint -q {storage} || sudo mount -t nfs -o nfsvers=4.1,hard,timeo=600 {manifest.volume} {storage}",
        ]
    start = "ulimit -n 65536; export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0; ray start"
    return {
        "cluster_name": job.name,
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
