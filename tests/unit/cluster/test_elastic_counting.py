"""How many workers Ray Train finds room for, by Ray's own counting: one CPU stays for Ray Data while a run lasts."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from genrec.cluster.resources import DATA_CPUS, data_cpus_reserved

COORDINATOR = (
    "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator.get_or_create_autoscaling_coordinator"
)


@pytest.fixture
def config(tmp_path, write_prepared, make_config):
    folder = write_prepared(tmp_path / "set", [[1, 2, 3, 4]])
    return lambda *overrides: make_config(folder, "batch.micro_batches_per_step=840", *overrides)


def coordinator_of(*cpus: float) -> _AutoscalingCoordinatorActor:
    """Ray's coordinator, in this process, of a cluster of nodes with so many CPUs."""
    nodes = [
        {"NodeID": str(number), "Alive": True, "Resources": {"CPU": count}, "Labels": {}}
        for number, count in enumerate(cpus)
    ]
    return _AutoscalingCoordinatorActor(send_resources_request=lambda *_, **__: None, get_cluster_nodes=lambda: nodes)


def room(coordinator: _AutoscalingCoordinatorActor, most: int, cpus_per_worker: float) -> int:
    """The workers that an elastic run would start with."""
    worker = {"CPU": cpus_per_worker}
    coordinator.request_resources("train", [worker] * most, 180, priority=ResourceRequestPriority.HIGH)
    policy = ElasticScalingPolicy(ScalingConfig(num_workers=(1, most), resources_per_worker=worker))
    return policy._count_possible_workers(coordinator.get_reserved_resources("train"))


@pytest.fixture
def serve(monkeypatch):
    """Makes a coordinator the one that `data_cpus_reserved` asks."""

    def use(coordinator: _AutoscalingCoordinatorActor) -> None:
        def actor(name: str) -> Any:
            return SimpleNamespace(remote=getattr(coordinator, name))

        handle = SimpleNamespace(request_resources=actor("request_resources"), cancel_request=actor("cancel_request"))
        monkeypatch.setattr(COORDINATOR, lambda: handle)
        monkeypatch.setattr("ray.get", lambda answer, timeout: answer)

    return use


@pytest.mark.parametrize(
    ("cpus", "per_worker", "without", "expected"),
    [
        ((2,), 0.5, 4, 2),
        ((1, 1, 1), 1.0, 3, 2),
        ((1, 1), 0.25, 8, 4),
        ((8, 8), 1.0, 8, 8),  # enough for all
    ],
)
def test_a_cpu_is_kept_from_a_range_of_workers(
    config, serve, cpus: tuple[float, ...], per_worker: float, without: int, expected: int
) -> None:
    coordinator = coordinator_of(*cpus)
    assert room(coordinator, 8, per_worker) == without
    coordinator.cancel_request("train")
    serve(coordinator)
    with data_cpus_reserved(config("cluster.workers=[1, 8]", f"cluster.cpus_per_worker={per_worker}"), "data"):
        assert room(coordinator, 8, per_worker) == expected
        assert sum(cpus) - expected * per_worker >= DATA_CPUS
    assert room(coordinator, 8, per_worker) == without


def test_a_fixed_number_of_workers_reserves_nothing(config, serve) -> None:
    coordinator = coordinator_of(2)
    serve(coordinator)
    with data_cpus_reserved(config("cluster.workers=2"), "data"):
        assert room(coordinator, 4, 0.5) == 4


def test_why_fractions_are_multiples_of_a_sixteenth() -> None:
    assert room(coordinator_of(1), 8, 0.1) == 7
    assert all(room(coordinator_of(1), int(1 / step), step) == int(1 / step) for step in (0.0625, 0.125, 0.25, 0.5))
