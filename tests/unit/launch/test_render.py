"""Manifests are what the platforms accept, follow the config, and are those that launch/examples shows."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kuberay_schema import KINDS
from typer.testing import CliRunner

from genrec.cli import app
from genrec.config import config_from_dict, load_config
from genrec.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "launch" / "examples"
COMMAND = [
    "train", "configs/quickstart.yaml", "cluster.workers=[2, 4]", "cluster.gpus_per_worker=1",
    "batch.micro_batches_per_step=12",
]  # fmt: skip
CPUS = ["train", "configs/quickstart.yaml"]
ON_S3 = ["runs_dir=s3://b/runs", "data.prepared=s3://b/p"]
CODES = ["model={name: code-decoder}", "loss={name: full-softmax}", "semantic_ids={path: maps/q}"]
OPTIONS = ["--image", "registry.example.org/genrec:0.1", "--spot", "--memory", "64"]
NFS = ["--volume", "10.0.0.2:/share"]
AMI = ["--machine-image", "ami-0123456789abcdef0"]
IMAGE = ["--machine-image", "projects/my-project/global/images/family/genrec-machines"]
GOLDEN = {
    "rayjob.yaml": ["--render", "kuberay", "--gpu-type", "NVIDIA-H100-80GB-HBM3", "--secret", "genrec", *OPTIONS],
    "raycluster.yaml": ["--render", "kuberay-cluster", "--queue", "team-a", *OPTIONS],
    "job.sh": ["--render", "slurm", "--gpu-type", "h100", "--queue", "gpu", "--memory", "64"],
    "aws.yaml": ["--render", "aws", "--machine-type", "g6.2xlarge", "--volume", "fs.example.org:/", *AMI, *OPTIONS],
    "gcp.yaml": [
        "--render",
        "gcp",
        "--project",
        "my-project",
        "--machine-type",
        "g2-standard-8",
        "--volume",
        "10.0.0.2:/share",
        *IMAGE,
        *OPTIONS,
    ],
}


def render(*options: str, command: list[str] | None = None) -> str:
    """What `genrec submit` prints; its mistake is raised."""
    words = ["submit", "--working-dir", str(ROOT), *options, "--", *(COMMAND if command is None else command)]
    done = CliRunner().invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def documents(text: str) -> dict[str, dict[str, Any]]:
    """The manifests by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_examples_are_what_is_rendered(name: str) -> None:
    path = EXAMPLES / name
    written = path.read_text(encoding="utf-8") if path.is_file() else ""
    line = shlex.join(["genrec", "submit", *GOLDEN[name], "--output", "launch/examples", "--", *COMMAND])
    assert written == render(*GOLDEN[name]), f"made by another version of the code; make it again: {line}"


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
@pytest.mark.parametrize("more", [[], ["--data-machines", "0", "--entrypoint-cpus", "1"]])
def test_kuberay_accepts_its_manifests(name: str, more: list[str]) -> None:
    found = documents(render(*GOLDEN[name], *more))
    assert found.keys() - {"ConfigMap"} == {"RayJob" if name == "rayjob.yaml" else "RayCluster"}
    for kind, document in found.items():
        jsonschema.validate(document, KINDS[kind])


def test_the_schema_refuses_what_it_does_not_know() -> None:
    found = documents(render(*GOLDEN["rayjob.yaml"]))
    found["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["imagePullPolicy"] = "Always"
    with pytest.raises(jsonschema.ValidationError, match="imagePullPolicy"):
        jsonschema.validate(found["RayJob"], KINDS["RayJob"])


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_ray_accepts_cluster_files(name: str) -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    cluster = yaml.safe_load(render(*GOLDEN[name]))
    jsonschema.validate(cluster, schema)
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    assert sum(kind["max_workers"] for kind in types.values()) == cluster["max_workers"]
    assert types["train"]["max_workers"] == 4
    assert types["train"]["resources"]["GPU"] == 1
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][1]


def test_a_ray_job_follows_the_config() -> None:
    found = documents(render(*GOLDEN["rayjob.yaml"], "--workers-per-machine", "2", "--name", "My_Job"))
    job, config_map = found["RayJob"], found["ConfigMap"]
    assert job["metadata"]["name"] == config_map["metadata"]["name"] == "my-job"
    carried = config_from_dict(yaml.safe_load(config_map["data"]["config.yaml"]))
    overrides = [word for word in COMMAND if "=" in word]
    asked = load_config(ROOT / "configs" / "quickstart.yaml", overrides)
    assert carried.model_copy(update={"placement": asked.placement}) == asked
    assert carried.placement.worker_labels == {"genrec-role": "train"}
    assert carried.placement.wait_s > 0
    assert job["spec"]["entrypoint"] == "env -C /mnt/genrec python -m genrec train /etc/genrec/config.yaml"
    groups = {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert (groups["train"]["minReplicas"], groups["train"]["maxReplicas"]) == (1, 2)
    assert groups["train"]["labels"] == carried.placement.worker_labels
    assert groups["data"]["labels"] == carried.placement.data_labels
    pod = groups["train"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "nvidia.com/gpu" not in groups["data"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    saving_s = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert saving_s < pod["terminationGracePeriodSeconds"], "the pod must live until the workers have saved"


def test_kueue_admits_a_fixed_number_of_machines() -> None:
    found = documents(render(*GOLDEN["rayjob.yaml"], "--queue", "team-a"))["RayJob"]
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert found["spec"]["suspend"] is True
    cluster = found["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is False
    train = cluster["workerGroupSpecs"][0]
    assert train["replicas"] == train["minReplicas"] == train["maxReplicas"] == 4


def test_every_pod_can_have_a_secret_and_an_account(tmp_path: Path) -> None:
    options = ["--render", "kuberay", "--secret", "keys", "--service-account", "trainer"]
    job = documents(render(*options, command=CPUS))["RayJob"]
    jsonschema.validate(job, KINDS["RayJob"])
    cluster = job["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert len(pods) == 3
    for pod in pods:
        assert pod["serviceAccountName"] == "trainer"
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("My_Job.2", "my-job-2"), ("2026_run", "genrec-2026-run"), ("a" * 100, "a" * 40), ("a" * 39 + "_b", "a" * 39)],
)
def test_names_are_those_that_kuberay_takes(name: str, expected: str) -> None:
    assert (
        documents(render("--render", "kuberay", "--name", name, command=CPUS))["RayJob"]["metadata"]["name"] == expected
    )


def test_names_are_those_that_google_takes() -> None:
    options = ["--render", "gcp", "--project", "my-project", "--volume", "fs:/", *IMAGE, "--name", "My_Job." + "a" * 60]
    name = yaml.safe_load(render(*options, command=CPUS))["cluster_name"]
    assert len(f"ray-{name}-worker-12345678-compute") <= 63
    assert name.startswith("my-job-aaa")


def test_machines_of_a_cloud_can_write_the_storage_and_wait_for_their_driver() -> None:
    cluster = yaml.safe_load(render(*GOLDEN["gcp.yaml"]))
    train = cluster["available_node_types"]["train"]
    assert train["initialization_commands"][:-1] == cluster["initialization_commands"]
    assert "until nvidia-smi" in train["initialization_commands"][-1]
    assert train["node_config"]["metadata"]["items"][0]["key"] == "install-nvidia-driver"
    assert any("chown 1000:1000 /mnt/genrec" in command for command in cluster["initialization_commands"])
    for kind in yaml.safe_load(render(*GOLDEN["aws.yaml"]))["available_node_types"].values():
        assert kind["node_config"]["ImageId"] == AMI[1]


def test_places_on_storage_need_no_volume() -> None:
    places = ["runs_dir=s3://bucket/runs", "data.prepared=s3://bucket/prepared/quickstart"]
    cluster = yaml.safe_load(render("--render", "aws", *AMI, command=[*CPUS, *places]))
    assert cluster["initialization_commands"] == []


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="`make install` installs shellcheck")
@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_shellcheck_finds_nothing_in_the_commands_of_cluster_files(name: str, tmp_path: Path) -> None:
    cluster = yaml.safe_load(render(*GOLDEN[name]))
    parts = [cluster, *cluster["available_node_types"].values()]
    commands = [command for part in parts for key in part if key.endswith("_commands") for command in part[key]]
    script = tmp_path / "commands.sh"
    script.write_text("\n".join(["#!/usr/bin/env bash", "RAY_HEAD_IP=10.0.0.1", *commands, ""]), encoding="utf-8")
    checked = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_slurm_script_asks_for_its_machines_and_runs_the_command() -> None:
    script = render(*GOLDEN["job.sh"], "--time-limit", "90")
    for line in ("--nodes=2-4", "--gpus-per-node=h100:1", "--partition=gpu", "--time=1:30:00", "--mem=64G"):
        assert f"#SBATCH {line}\n" in script
    assert "(umask 077 && python" in script, "the token is private, and what the run writes is as the user likes it"
    command = next(line for line in script.splitlines() if "RAY_ADDRESS=" in line)
    assert shlex.join(["python", "-m", "genrec", *COMMAND]) in command


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="`make install` installs shellcheck")
@pytest.mark.parametrize("options", [GOLDEN["job.sh"], ["--render", "slurm"]], ids=["gpus", "cpus"])
def test_shellcheck_finds_nothing_in_the_script(options: list[str], tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(render(*options), encoding="utf-8")
    checked = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("options", "command", "says"),
    [
        (["--render", "aws"], COMMAND, "--machine-type"),
        (
            ["--render", "aws", "--machine-type", "p5.48xlarge"],
            COMMAND,
            "--machine-image.*driver.*aws ssm get-parameter",
        ),
        (["--render", "aws"], CPUS, "--machine-image, what its machines start from, with Docker: "),
        (["--render", "aws", *AMI], CPUS, r"runs_dir \(runs\) is a folder, and machines of a cloud share none"),
        (["--render", "aws", *AMI], [*CPUS, "runs_dir=s3://b/runs"], r"data.prepared \(prepared/quickstart\) is"),
        (["--render", "aws", *AMI], [*CPUS, *ON_S3, *CODES], r"semantic_ids.path \(maps/q\) is a folder, and machines"),
        (["--render", "aws", *AMI, "--volume", "claim"], CPUS, r"--volume \(claim\) must be an NFS export"),
        (["--render", "kuberay", "--volume", "fs.example.org:/"], CPUS, "must be the name of a PersistentVolumeClaim"),
        (["--render", "slurm", "--spot", "--data-machines", "3"], COMMAND, "no place for --data-machines, --spot"),
        (["--render", "kuberay", "--entrypoint-memory", "2"], CPUS, "kuberay has no place for --entrypoint-memory"),
        (["--render", "kuberay-cluster", "--region", "us-west-2"], CPUS, "no place for --region"),
        (["--render", "gcp", "--secret", "s"], CPUS, "--render gcp has no place for --secret"),
        (["--render", "kuberay", "--storage", "/x;rm"], CPUS, "entrypoint.storage = '/x;rm'"),
        (["--render", "kuberay", "--secret", "Not A Name"], CPUS, "platform.secret = 'Not A Name'"),
        (["--render", "kuberay", "--spot"], ["train", "configs/quickstart.yaml"], r"cluster.workers=\[1,2\]"),
        (["--render", "kuberay"], ["evaluate", "runs/quickstart"], "needs a command with a config"),
        (["--render", "aws"], ["bench", "benchmarks/matrices/smoke.yaml"], "needs a command with a config"),
        (["--render", "kuberay"], ["tune", "configs/sweeps/efficiency.yaml"], "a sweep has two files"),
        (["--render", "gcp"], COMMAND, "--project"),
        (
            ["--render", "gcp", "--project", "my-project", "--machine-type", "n1-standard-8", *NFS, *IMAGE],
            COMMAND,
            "--gpu-type",
        ),
        (["--render", "kuberay", "--storage", "relative"], COMMAND, "entrypoint.storage = 'relative'"),
        (["--render", "kuberay", "--entrypoint-label", "x"], COMMAND, "KEY=VALUE"),
        (["--output", "x"], COMMAND, "add --render"),
        (["--render", "kuberay"], ["jobs"], "cannot be sent to a cluster"),
    ],
)
def test_what_cannot_be_rendered_is_said(options: list[str], command: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        render(*options, command=command)


ODD = '/data/it\'s a "set"; $(id) {x} `y` *'


@pytest.mark.parametrize("name", GOLDEN)
def test_odd_characters_stay_what_they_are(name: str, tmp_path: Path) -> None:
    """A path with spaces, quotes and what a shell or YAML would read something into."""
    words = ["train", "configs/quickstart.yaml", f"data.prepared={ODD}"]
    options = ["--storage", "/mnt/genrec", *[word for word in GOLDEN[name] if word != "--spot"]]
    manifest = tmp_path / name
    manifest.write_text(render(*options, command=[*words, "cluster.gpus_per_worker=1"]), encoding="utf-8")
    text = manifest.read_text(encoding="utf-8")
    if name == "rayjob.yaml":
        carried = yaml.safe_load(documents(text)["ConfigMap"]["data"]["config.yaml"])
        assert carried["data"]["prepared"] == ODD
        return
    if name == "job.sh":
        subprocess.run(["bash", "-n", str(manifest)], check=True, timeout=30)
        (line,) = [line for line in text.splitlines() if line.startswith("  -- env RAY_ADDRESS=")]
        said = shlex.split(line.removesuffix("&"))
    else:
        assert yaml.safe_load(text)
        (line,) = [line for line in text.splitlines() if line.startswith("# genrec submit")]
        said = shlex.split(line.removeprefix("# "))
    assert said[said.index("train") :][:3] == words


def test_prometheus_finds_the_pods() -> None:
    monitor = yaml.safe_load((ROOT / "launch" / "monitoring" / "podmonitor.yaml").read_text(encoding="utf-8"))["spec"]
    cluster = documents(render(*GOLDEN["rayjob.yaml"]))["RayJob"]["spec"]["rayClusterSpec"]
    wanted = monitor["selector"]["matchLabels"].items()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert wanted <= group["template"]["metadata"]["labels"].items()
        # Else the operator would not add its own, which is called so.
        assert not any("ports" in container for container in group["template"]["spec"]["containers"])
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == ["metrics"]
