"""A run that the cluster can never hold is refused, with a number that fits."""

import pytest

from genrec.cluster.resources import check_resources
from genrec.errors import ConfigError


@pytest.fixture
def config(tmp_path, write_prepared, make_config):
    folder = write_prepared(tmp_path / "set", [[1, 2, 3, 4]])
    return lambda *overrides: make_config(folder, "batch.micro_batches_per_step=8", *overrides)


def cluster_of(monkeypatch: pytest.MonkeyPatch, *machines: dict[str, float]) -> None:
    """Ray says that the cluster has these machines, and one that has died."""
    total = {kind: sum(machine.get(kind, 0.0) for machine in machines) for kind in ("CPU", "GPU")}
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    monkeypatch.setattr("ray.cluster_resources", lambda: total)
    monkeypatch.setattr("ray.nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64.0}}])


def test_ray_data_keeps_some_cpu(config, monkeypatch) -> None:
    cluster_of(monkeypatch, {"CPU": 2.0})
    check_resources(config("cluster.workers=2", "cluster.cpus_per_worker=0.5"))
    with pytest.raises(ConfigError, match=r"\(2 \* 1.0 = 2\) must leave 1 of the cluster's 2 CPUs .*=0.5"):
        check_resources(config("cluster.workers=2", "cluster.cpus_per_worker=1"))
    with pytest.raises(ConfigError, match=r"\(2 \* 0.75 = 1.5\) must leave 1 of the cluster's 2 CPUs .*=0.5"):
        check_resources(config("cluster.workers=2", "cluster.cpus_per_worker=0.75"))


def test_a_range_needs_room_for_its_fewest_workers(config, monkeypatch) -> None:
    cluster_of(monkeypatch, {"CPU": 3.0})
    check_resources(config("batch.micro_batches_per_step=12", "cluster.workers=[2, 4]", "cluster.cpus_per_worker=1"))
    with pytest.raises(ConfigError, match=r"\(4 \* 1.0 = 4\) must leave 1 of the cluster's 3 CPUs"):
        check_resources(config("cluster.workers=[4, 4]", "cluster.cpus_per_worker=1"))


def test_more_gpus_than_there_are(config, monkeypatch) -> None:
    cluster_of(monkeypatch, {"CPU": 64.0, "GPU": 4.0})
    check_resources(config("cluster.workers=4", "cluster.cpus_per_worker=1", "cluster.gpus_per_worker=1"))
    with pytest.raises(ConfigError, match=r"\(8 \* 1 = 8\) is more than the cluster's 4 GPUs"):
        check_resources(config("cluster.workers=8", "cluster.gpus_per_worker=1"))


def test_background_validation_needs_room_besides_the_workers(config, monkeypatch) -> None:
    background = ("cluster.workers=2", "evaluation.validation=background")
    cluster_of(monkeypatch, {"CPU": 2.5, "GPU": 2.0})
    check_resources(config(*background))
    too_many = config(*background, "cluster.validation_cpus=1")
    with pytest.raises(ConfigError, match=r"validation_cpus \(1\) besides the 1 CPUs of the workers and 1 .* has 2.5"):
        check_resources(too_many)
    check_resources(config("cluster.workers=2", "cluster.validation_cpus=1"))
    with pytest.raises(ConfigError, match=r"validation_gpus \(1\) besides the 2 GPUs .*cluster.validation_gpus=0"):
        check_resources(config(*background, "cluster.gpus_per_worker=1", "cluster.validation_gpus=1"))


def test_a_worker_must_fit_one_machine(config, monkeypatch) -> None:
    cluster_of(monkeypatch, {"CPU": 3.0}, {"CPU": 3.0})
    check_resources(config("cluster.workers=2", "cluster.cpus_per_worker=2"))
    with pytest.raises(
        ConfigError, match=r"cluster.workers \(2\) of 2.5 CPUs .* \(3 CPUs 0 GPUs, 3 CPUs 0 GPUs\): 1 do"
    ):
        check_resources(config("cluster.workers=2", "cluster.cpus_per_worker=2.5"))
    cluster_of(monkeypatch, {"CPU": 8.0}, {"CPU": 2.0, "GPU": 4.0})
    with pytest.raises(ConfigError, match=r"\(8 CPUs 0 GPUs, 2 CPUs 4 GPUs\): 2 do"):
        check_resources(config("cluster.workers=4", "cluster.cpus_per_worker=1", "cluster.gpus_per_worker=1"))
    check_resources(config("cluster.workers=4", "cluster.cpus_per_worker=0.5", "cluster.gpus_per_worker=1"))
