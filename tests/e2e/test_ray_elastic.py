"""A range of workers: the run grows when a machine comes, goes on with fewer when one is lost, and loses no step."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from commands import records, start, succeed, wait_until

from genrec.config import load_config
from genrec.data.plan import make_plan
from genrec.data.stream import local_tables, worker_batches
from genrec.run_dir import RunDir
from genrec.training.window_log import trained_windows

NODE = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
EVERY = 25
COMMAND = (
    "train",
    "walk.yaml",
    "name=elastic",
    # On nodes of one CPU each, one of which must be left to Ray Data: as many workers as nodes less one.
    "cluster={workers: [1, 2], cpus_per_worker: 1, resize_check_s: 2, max_failures: 1}",
    f"train={{max_steps: 50000, log_every_steps: 1, checkpoint_every_steps: {EVERY}}}",
    "tracking.log_windows=true",
    "train.evaluate_every_epochs=1000000",
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one CPU on this machine; commands that a test starts join them."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **NODE})
    try:
        nodes.add_node(**NODE)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def node_of_a_worker(cluster: Any) -> Any:
    """A node that a worker is on, and not the command."""
    import ray

    actors = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
    busy = {actor["Address"]["NodeID"] for actor in actors if "RayTrainWorker" in actor["ActorClassName"]}
    return next(node for node in cluster.list_all_nodes() if node.node_id in busy and node is not cluster.head_node)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_node_then_two_then_one(project: Path, cluster: Any) -> None:
    run = project / "runs" / "elastic"

    def workers(*expected: int) -> Callable[[], bool]:
        """Whether the groups so far had these sizes, and the last of them has trained beyond its first checkpoint."""

        def ready() -> bool:
            starts = records(run, "start")
            trained = records(run, "train")
            sizes = [line["workers"] for line in starts]
            return sizes == list(expected) and trained[-1]["step"] > starts[-1]["step"] + EVERY

        return ready

    with start(project, *COMMAND) as command:
        wait_until(workers(1), command, timeout_s=400)
        cluster.add_node(**NODE)
        wait_until(workers(1, 2), command, timeout_s=400)
        cluster.remove_node(node_of_a_worker(cluster), allow_graceful=False)
        wait_until(workers(1, 2, 1), command, timeout_s=400)
    last = records(run, "train")[-1]["step"] + EVERY
    # Ray goes on promising a killed command's room to it for three minutes; a fixed number of workers does not ask.
    succeed(
        project,
        *COMMAND,
        "cluster.workers=1",
        f"train.max_steps={last}",
        "--allow-change=train.max_steps",
        timeout_s=400,
    )
    trained = [line["step"] for line in records(run, "train")]
    assert sorted(set(trained)) == list(range(1, last + 1))
    assert_little_is_repeated(trained)
    assert seen(run) == planned(project, last)


def assert_little_is_repeated(trained: list[int]) -> None:
    """Every restart goes on from the last checkpoint before the steps that had been trained."""
    goes_back = [(before, after) for before, after in pairwise(trained) if after != before + 1]
    assert len(goes_back) <= 3  # two changes of size, and the end of the first command
    for before, after in goes_back:
        assert (after - 1) % EVERY == 0
        assert 0 <= before - (after - 1) <= EVERY


def seen(run: Path) -> list[tuple[int, int, list[int], list[int]]]:
    """What was trained and counts, step by step and part by part."""
    return [(r["step"], r["part"], r["users"], r["starts"]) for r in trained_windows(RunDir(run))]


def planned(project: Path, end: int) -> list[tuple[int, int, list[int], list[int]]]:
    """What a single process reads for the same steps."""
    config = load_config(project / "walk.yaml", [f"data.prepared={project / 'prepared' / 'walks'}"])
    span = {"start_step": 0, "end_step": end, "rank": 0, "workers": 1}
    batches = worker_batches(local_tables(make_plan(config), **span), **span, parts=2)
    return [(place.step, place.part, batch.users.tolist(), batch.starts.tolist()) for place, batch in batches]
