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
OPTIONS = ["--image", "registry.example.org/genrec:0.1", "--spot", "--memory", "64"]
GOLDEN = {
    "rayjob.yaml": ["--render", "kuberay", "--gpu-type", "NVIDIA-H100-80GB-HBM3", *OPTIONS],
    "raycluster.yaml": ["--render", "kuberay-cluster", "--queue", "team-a", *OPTIONS],
    "job.sh": ["--render", "slurm", "--gpu-type", "h100", "--queue", "gpu", *OPTIONS],
    "aws.yaml": ["--render", "aws", "--machine-type", "g6.2xlarge", "--volume", "fs.example.org:/", *OPTIONS],
    "gcp.yaml": [
        "--render",
        "gcp",
        "--project",
        "my-project",
        "--machine-type",
        "g2-standard-8",
        "--volume",
        "10.0.0.2:/share",
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


def test_a_slurm_script_asks_for_its_machines_and_runs_the_command() -> None:
    script = render(*GOLDEN["job.sh"], "--time-limit", "90")
    for line in ("--nodes=2-4", "--gpus-per-node=h100:1", "--partition=gpu", "--time=1:30:00", "--mem=64G"):
        assert f"#SBATCH {line}\n" in script
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
        (["--render", "kuberay", "--spot"], ["train", "configs/quickstart.yaml"], r"cluster.workers=\[1,2\]"),
        (["--render", "kuberay"], ["evaluate", "runs/quickstart"], "needs a command with a config"),
        (["--render", "aws"], ["bench", "benchmarks/matrices/smoke.yaml"], "needs a command with a config"),
        (["--render", "kuberay"], ["tune", "configs/sweeps/efficiency.yaml"], "a sweep has two files"),
        (["--render", "gcp"], COMMAND, "--project"),
        (["--render", "gcp", "--project", "my-project", "--machine-type", "n1-standard-8"], COMMAND, "--gpu-type"),
        (["--render", "kuberay", "--storage", "relative"], COMMAND, "entrypoint.storage = 'relative'"),
        (["--render", "kuberay", "--entrypoint-label", "x"], COMMAND, "KEY=VALUE"),
        (["--output", "x"], COMMAND, "add --render"),
        (["--render", "kuberay"], ["jobs"], "cannot be sent to a cluster"),
    ],
)
def test_what_cannot_be_rendered_is_said(options: list[str], command: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        render(*options, command=command)
