"""The part of KubeRay's CRDs that the manifests use, as JSON schemas that refuse every field they do not know.

The CRDs themselves (`ray.io_rayjobs.yaml`) are tens of thousands of lines, nearly all of them Kubernetes' pods, and
are not kept here: this is written by hand from KubeRay's API reference (`ray.io/v1`), with `labels` and `authOptions`,
which came with 1.5. Of Kubernetes' pods only the fields that the manifests use are known. So it finds a misspelt field,
one at the wrong place and a wrong type; it cannot find what only a newer or an older operator refuses.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"}
LABELS: Schema = {
    "type": "object",
    "additionalProperties": {"type": "string", "maxLength": 63, "pattern": r"^([A-Za-z0-9]([\w.-]*[A-Za-z0-9])?)?$"},
}


def closed(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    """An object with these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def several(item: Schema) -> Schema:
    """A list of one thing or more."""
    return {"type": "array", "items": item, "minItems": 1}


# KubeRay refuses other names for clusters: services are called after them (DNS-1035, a letter first).
OWN_NAME: Schema = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
METADATA = closed(("name", "namespace"), name=OWN_NAME, namespace=NAME, labels=LABELS, annotations=TEXTS)
RESOURCES = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = closed(
    ("name", "image"),
    name=NAME,
    image=TEXT,
    env=several(closed(("name",), name=TEXT, value=TEXT)),
    envFrom=several(closed(("secretRef",), secretRef=closed(("name",), name=TEXT))),
    resources=closed(requests=RESOURCES, limits=RESOURCES),
    securityContext=closed(
        allowPrivilegeEscalation=FLAG, capabilities=closed(drop=several(TEXT)), readOnlyRootFilesystem=FLAG
    ),
    volumeMounts=several(closed(("name", "mountPath"), name=NAME, mountPath=TEXT, readOnly=FLAG)),
    lifecycle=closed(preStop=closed(exec=closed(("command",), command=several(TEXT)))),
)
VOLUME = closed(
    ("name",),
    name=NAME,
    emptyDir=closed(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
    persistentVolumeClaim=closed(("claimName",), claimName=TEXT, readOnly=FLAG),
    configMap=closed(("name",), name=NAME),
)
TOLERATION = closed(
    key=TEXT,
    operator={"enum": ["Exists", "Equal"]},
    value=TEXT,
    effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
)
POD = closed(
    ("containers",),
    terminationGracePeriodSeconds=NUMBER,
    automountServiceAccountToken=FLAG,
    serviceAccountName=TEXT,
    securityContext=closed(runAsNonRoot=FLAG, runAsUser=NUMBER, fsGroup=NUMBER),
    nodeSelector=TEXTS,
    tolerations=several(TOLERATION),
    containers=several(CONTAINER),
    volumes=several(VOLUME),
)
TEMPLATE = closed(("spec",), metadata=closed(labels=LABELS, annotations=TEXTS), spec=POD)
GROUP = {"rayStartParams": TEXTS, "template": TEMPLATE, "labels": LABELS, "resources": TEXTS}
CLUSTER_SPEC = closed(
    ("headGroupSpec",),
    suspend=FLAG,
    managedBy=TEXT,
    authOptions=closed(mode={"enum": ["token", "disabled"]}),
    autoscalerOptions=closed(
        idleTimeoutSeconds=NUMBER,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        version={"enum": ["v1", "v2"]},
    ),
    headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions={"type": "object"},
    headGroupSpec=closed(("template",), serviceType=TEXT, enableIngress=FLAG, **GROUP),
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    workerGroupSpecs=several(
        closed(
            ("groupName", "minReplicas", "maxReplicas", "template"),
            groupName=NAME,
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            numOfHosts=NUMBER,
            idleTimeoutSeconds=NUMBER,
            suspend=FLAG,
            **GROUP,
        )
    ),
)
JOB_SPEC = closed(
    activeDeadlineSeconds=NUMBER,
    backoffLimit=NUMBER,
    rayClusterSpec=CLUSTER_SPEC,
    submitterPodTemplate=TEMPLATE,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    submitterConfig=closed(backoffLimit=NUMBER),
    managedBy=TEXT,
    deletionStrategy={"type": "object"},
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypointResources=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=NUMBER,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)
KINDS: dict[str, Schema] = {
    "RayJob": closed(
        ("spec",), apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, metadata=METADATA, spec=JOB_SPEC
    ),
    "RayCluster": closed(
        ("spec",), apiVersion={"const": "ray.io/v1"}, kind={"const": "RayCluster"}, metadata=METADATA, spec=CLUSTER_SPEC
    ),
    "ConfigMap": closed(
        ("data",), apiVersion={"const": "v1"}, kind={"const": "ConfigMap"}, metadata=METADATA, data=TEXTS
    ),
}
