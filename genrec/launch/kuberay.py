"""Manifests for KubeRay (1.5.1 or newer): a RayJob with its own cluster, or a RayCluster that jobs are sent to.

The config travels in the manifest, as a ConfigMap: a manifest cannot drift from the config that it was rendered from.
Field names are those of the CRDs `ray.io/v1` and of Kubernetes' pods.
"""

import re
import shlex
from typing import Any

import yaml

from genrec.errors import ConfigError
from genrec.launch.cluster_facts import installed_ray
from genrec.launch.manifest_yaml import dump
from genrec.launch.options import (
    DATA_LABELS,
    KUBERNETES_NAME,
    MADE_BY,
    WORKER_LABELS,
    JobDescription,
    platform_name,
    refuse_unknown,
    submit_line,
)

API_VERSION = "ray.io/v1"
CONFIG_FOLDER = "/etc/genrec"
CONFIG_PATH = f"{CONFIG_FOLDER}/config.yaml"
HEAD_CPUS = 2
HEAD_MEMORY_GIB = 8
GRACE_S = 120
"""From the notice to the end of a pod. Spot machines of AWS give two minutes, those of Google 30 s at most."""
SAVE_S = 100
"""What of that the workers have to save a checkpoint and leave."""
TTL_S = 600
RETRIES = 2
_STORAGE_CLAIM = "genrec-storage"

Manifest = dict[str, Any]


def ray_job(job: JobDescription) -> str:
    """A ConfigMap and a RayJob that makes its cluster, runs the command and takes the cluster away."""
    refuse_unknown(job, "kuberay")
    options = job.options
    labels = {"app.kubernetes.io/name": "genrec", "genrec/run": job.config.name[:63].strip("._-")}
    if options.manifest.queue:
        labels["kueue.x-k8s.io/queue-name"] = options.manifest.queue
    spec: Manifest = {
        # Relative paths of the config begin in the storage that all machines share.
        "entrypoint": shlex.join(["env", "-C", job.storage, "python", "-m", "genrec", *job.words]),
        "metadata": {"run": job.config.name},
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_S,
        "activeDeadlineSeconds": options.manifest.time_limit * 60,
        "backoffLimit": RETRIES,  # a new cluster each time, which goes on with the same run
        "rayClusterSpec": _cluster_spec(job),
    }
    if options.manifest.queue:
        spec["suspend"] = True  # until Kueue admits it
    for name, value in (
        ("entrypointNumCpus", options.entrypoint.entrypoint_cpus),
        ("entrypointNumGpus", options.entrypoint.entrypoint_gpus),
    ):
        if value is not None:
            spec[name] = value
    return dump(
        f"{_head(job)}\n"
        "kubectl apply -f rayjob.yaml      # applied again after `kubectl delete`, it goes on with the same run",
        _config_map(job),
        {"apiVersion": API_VERSION, "kind": "RayJob", "metadata": _metadata(job, labels), "spec": spec},
    )


def ray_cluster(job: JobDescription) -> str:
    """A RayCluster with the same machines, for `genrec submit --address`."""
    refuse_unknown(job, "kuberay-cluster")
    labels = {"app.kubernetes.io/name": "genrec"}
    if job.options.manifest.queue:
        labels["kueue.x-k8s.io/queue-name"] = job.options.manifest.queue
    spec = _cluster_spec(job, with_config=False)
    if job.options.manifest.queue:
        spec["suspend"] = True
    name, namespace = _kubernetes_name(job), job.options.platform.namespace
    return dump(
        f"{_head(job)}\n"
        "kubectl apply -f raycluster.yaml\n"
        f"kubectl -n {namespace} port-forward service/{name}-head-svc 8265 &\n"
        f"export RAY_AUTH_TOKEN=$(kubectl -n {namespace} get secret {name} -o jsonpath='{{.data.auth_token}}'"
        " | base64 -d)\n"
        f"{submit_line(job)}",
        {"apiVersion": API_VERSION, "kind": "RayCluster", "metadata": _metadata(job, labels), "spec": spec},
    )


def _cluster_spec(job: JobDescription, *, with_config: bool = True) -> Manifest:
    manifest = job.options.manifest
    least, most = job.machines
    # Kueue admits a fixed number, all at once.
    fixed = manifest.queue is not None
    groups = [_group(job, "train", (most, most) if fixed else (least, most), WORKER_LABELS, _train_template(job))]
    if manifest.data_machines:
        number = manifest.data_machines
        template = _template(job, "data", manifest.data_cpus, 0)
        groups.append(_group(job, "data", (number, number), DATA_LABELS, template))
    head = _template(job, "head", HEAD_CPUS, 0, memory_gib=HEAD_MEMORY_GIB)
    if with_config:
        head["spec"]["containers"][0]["volumeMounts"].append({"name": "config", "mountPath": CONFIG_FOLDER})
        head["spec"]["volumes"].append({"name": "config", "configMap": {"name": _kubernetes_name(job)}})
    spec: Manifest = {
        "rayVersion": installed_ray(),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # No worker and no task on the head: what it runs is the command, and losing it costs the run a restart.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": head,
        },
        "workerGroupSpecs": groups,
        "enableInTreeAutoscaling": not fixed,
    }
    if not fixed:
        spec["autoscalerOptions"] = {"idleTimeoutSeconds": 300, "upscalingMode": "Default"}
    return spec


def _group(
    job: JobDescription, name: str, machines: tuple[int, int], labels: dict[str, str], template: Manifest
) -> Manifest:
    return {
        "groupName": name,
        "replicas": machines[0],
        "minReplicas": machines[0],
        "maxReplicas": machines[1],
        "labels": dict(labels),
        "rayStartParams": {},
        "template": template,
    }


def _train_template(job: JobDescription) -> Manifest:
    manifest = job.options.manifest
    template = _template(job, "train", job.machine_cpus, job.machine_gpus, memory_gib=manifest.memory)
    pod = template["spec"]
    # Before the pod ends, its workers save a checkpoint and the run goes on elsewhere.
    pod["containers"][0]["lifecycle"] = {
        "preStop": {"exec": {"command": ["python", "-m", "genrec.launch.ray_drain", "--grace-s", str(SAVE_S)]}}
    }
    selector, tolerations = {}, []
    if job.machine_gpus:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
        if manifest.gpu_type:
            selector["nvidia.com/gpu.product"] = manifest.gpu_type
    if manifest.spot:
        key, _, value = job.options.platform.spot_label.partition("=")
        selector[key] = value
        tolerations.append({"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    if selector:
        pod["nodeSelector"] = selector
    if tolerations:
        pod["tolerations"] = tolerations
    return template


def _template(job: JobDescription, role: str, cpus: int, gpus: int, memory_gib: int | None = None) -> Manifest:
    memory = memory_gib or job.options.manifest.memory
    resources = {"cpu": str(cpus), "memory": f"{memory}Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "storage", "mountPath": job.storage}]
    volumes: list[Manifest] = [
        # Ray's object store and the exchange of workers on a machine; counts as memory of the pod.
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(memory // 3, 1)}Gi"}},
        {
            "name": "storage",
            "persistentVolumeClaim": {"claimName": _claim(job)},
        },
    ]
    pod: Manifest = {
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000},
        "containers": [
            {
                "name": "ray-head" if role == "head" else "ray-worker",
                "image": job.options.manifest.image,
                "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
                "resources": {"requests": dict(resources), "limits": dict(resources)},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if job.options.platform.secret:
        pod["containers"][0]["envFrom"] = [{"secretRef": {"name": job.options.platform.secret}}]
    if job.options.platform.service_account:
        pod["serviceAccountName"] = job.options.platform.service_account
    if role != "head":
        pod["automountServiceAccountToken"] = False  # the head needs it, for the autoscaler
    return {"metadata": {"labels": {"app.kubernetes.io/name": "genrec", "genrec/role": role}}, "spec": pod}


def _head(job: JobDescription) -> str:
    return (
        f"{MADE_BY}\nFor KubeRay 1.5.1 or newer. The claim {_claim(job)} must be there, for many nodes (ReadWriteMany)."
    )


def _claim(job: JobDescription) -> str:
    claim = job.options.manifest.volume or _STORAGE_CLAIM
    if not re.fullmatch(KUBERNETES_NAME, claim):
        raise ConfigError(
            f"--volume ({claim}) must be the name of a PersistentVolumeClaim on Kubernetes; make one that many nodes "
            "may write (ReadWriteMany), and give its name."
        )
    return claim


def _config_map(job: JobDescription) -> Manifest:
    # As it was written, with its overrides; defaults are those of the genrec in the image.
    text = yaml.safe_dump(job.config.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, {"app.kubernetes.io/name": "genrec"}),
        "data": {"config.yaml": text},
    }


def _metadata(job: JobDescription, labels: dict[str, str]) -> Manifest:
    return {"name": _kubernetes_name(job), "namespace": job.options.platform.namespace, "labels": labels}


def _kubernetes_name(job: JobDescription) -> str:
    """KubeRay wants a DNS-1035 label, and adds up to 16 characters of its own."""
    return platform_name(job.name, 40)
