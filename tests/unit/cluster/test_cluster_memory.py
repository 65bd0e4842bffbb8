"""A worker that is too large for every machine of a cluster is refused before any worker starts."""

import pytest

from genrec.cluster.memory import ACCELERATOR_LABEL, check_cluster_memory
from genrec.cluster.resources import check_resources
from genrec.cluster.room import Machine
from genrec.errors import ConfigError
from genrec.planning import hardware

GIB = 2.0**30
WIDE = ("model.dim=512", "model.num_layers=8", "batch.tokens_per_step=16384", "batch.micro_batches_per_step=1")


@pytest.fixture
def config(tmp_path, write_prepared, make_config):
    folder = write_prepared(tmp_path / "set", [list(range(1, 21))] * 1_000, num_items=30)
    return lambda *overrides: make_config(folder, *WIDE, *overrides)


def test_a_worker_must_fit_the_largest_machine_that_it_may_use(config) -> None:
    small, large = Machine(4.0, memory_bytes=0.2 * GIB), Machine(4.0, labels={"kind": "big"}, memory_bytes=512 * GIB)
    sentence = r"A worker needs at least .*GiB with ZeRO-2 .*, and has 205\sMiB; "
    check_cluster_memory(config(), [small, large])
    with pytest.raises(ConfigError, match=sentence):
        check_cluster_memory(config(), [small, small])
    check_cluster_memory(config("placement.worker_labels={kind: big}"), [small, large])
    with pytest.raises(ConfigError, match=sentence):
        check_cluster_memory(
            config("placement.worker_labels={kind: small}"), [large, Machine(4.0, 0.0, {"kind": "small"}, 0.2 * GIB)]
        )


def test_what_is_not_known_is_not_judged(config) -> None:
    check_cluster_memory(config(), [Machine(4.0)])
    check_cluster_memory(config("engine={name: auto}"), [Machine(4.0, memory_bytes=1.0)])
    on_gpu = config("cluster.gpus_per_worker=1")
    check_cluster_memory(on_gpu, [Machine(4.0, 1.0, memory_bytes=64 * GIB)])  # a GPU without a name


def test_a_gpu_is_known_by_its_label(config, monkeypatch) -> None:
    monkeypatch.setitem(hardware.GPUS, "SMALL", hardware.Gpu(1e12, 1e12, 200 * 2**20))

    def node(name: str) -> Machine:
        return Machine(16.0, 1.0, {ACCELERATOR_LABEL: name}, 512 * GIB)

    one = config("cluster.gpus_per_worker=1")
    check_cluster_memory(one, [node("SMALL"), node("T4")])
    with pytest.raises(ConfigError, match=r"A worker needs at least .*, and has 200\sMiB; "):
        check_cluster_memory(one, [node("SMALL"), Machine(16.0, memory_bytes=GIB)])


def test_a_start_asks_where_the_cluster_is_elsewhere(config, monkeypatch) -> None:
    node = {"Alive": True, "Resources": {"CPU": 4.0, "memory": 0.1 * GIB, "object_store_memory": 0.1 * GIB}}
    monkeypatch.setattr("ray.nodes", lambda: [node])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_resources(config())
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    with pytest.raises(ConfigError, match="A worker needs at least"):
        check_resources(config())
