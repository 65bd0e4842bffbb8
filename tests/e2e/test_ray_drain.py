"""A node that the cluster is about to take away: the run is saved, and goes on where it was on other nodes."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import records

# A cluster of three nodes on this machine; the node of the workers is drained once they train.
DRAIN = """
import sys, threading, time
from pathlib import Path
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from genrec.cluster.ray_train import fit
from genrec.config import load_config
from genrec.run_dir import run_dir_of

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 200 * 2**20})
for _ in range(2):
    cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20)
ray.init(address=cluster.address, log_to_driver=False)
config = load_config("walk.yaml", sys.argv[1:])
run = run_dir_of(config)
run.create(config)

def drain():
    while not (run.metrics_path.is_file() and len(run.metrics_path.read_text().splitlines()) > 20):
        time.sleep(0.05)
    actors = [a for a in ray._private.state.actors().values() if a["State"] == "ALIVE"]
    nodes = {a["Address"]["NodeID"] for a in actors if "RayTrainWorker" in a["ActorClassName"]}
    driver = ray.get_runtime_context().get_node_id()
    deadline_ms = int((time.time() + 120) * 1000)
    reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    GcsClient(address=cluster.address).drain_node(sorted(nodes - {driver})[0], reason, "test", deadline_ms)

threading.Thread(target=drain, daemon=True).start()
fit(config, run, time.time())
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_drained_node_costs_no_step_and_no_failure(project: Path) -> None:
    steps = 2_000
    overrides = (
        f"train={{max_steps: {steps}, log_every_steps: 1, evaluate_every_epochs: 1000}}",
        "cluster={workers: 2, cpus_per_worker: 1, max_failures: 0}",
        "name=drained",
    )
    done = subprocess.run(
        [sys.executable, "-c", DRAIN, *overrides], cwd=project, capture_output=True, text=True, timeout=380, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = project / "runs" / "drained"
    assert [line["resumed"] for line in records(run, "start")] == [False, True]
    assert [line["step"] for line in records(run, "train")] == list(range(1, steps + 1))
