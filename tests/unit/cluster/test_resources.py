"""A run that the cluster can never hold is refused, with a number that fits."""

import pytest

from genrec.cluster.resources import check_resources
from genrec.errors import ConfigError, RunError


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


def test_labels_say_where_workers_and_readers_go(config, monkeypatch) -> None:
    def labelled(*machines: tuple[dict[str, float], dict[str, str]]) -> None:
        nodes = [{"Alive": True, "Resources": resources, "Labels": labels} for resources, labels in machines]
        monkeypatch.setattr("ray.nodes", lambda: nodes)

    apart = ("cluster.workers=4", "cluster.cpus_per_worker=1", "placement.worker_labels={role: train}")
    labelled(({"CPU": 4.0}, {"role": "train"}), ({"CPU": 1.0}, {}))
    check_resources(config(*apart))
    check_resources(config(*apart, "placement.data_labels=null"))
    with pytest.raises(ConfigError, match=r"data_labels \(role=data\) must be on some machine, and none .* 2 has it"):
        check_resources(config(*apart, "placement.data_labels={role: data}"))
    with pytest.raises(ConfigError, match=r"with role=train: 4 CPUs 0 GPUs\): 3 do"):
        check_resources(config(*apart, "placement.data_labels={role: train}"))
    labelled(({"CPU": 3.0}, {"role": "train"}), ({"CPU": 8.0}, {}))
    with pytest.raises(ConfigError, match=r"with role=train: 3 CPUs 0 GPUs\): 3 do"):
        check_resources(config(*apart))


def test_strict_strategies_need_their_machines(config, monkeypatch) -> None:
    two = ("cluster.workers=2", "cluster.cpus_per_worker=2")
    cluster_of(monkeypatch, {"CPU": 3.0}, {"CPU": 3.0})
    check_resources(config(*two, "placement.strategy=STRICT_SPREAD"))
    with pytest.raises(ConfigError, match=r"STRICT_PACK wants all on one: 1 do"):
        check_resources(config(*two, "placement.strategy=STRICT_PACK"))
    cluster_of(monkeypatch, {"CPU": 8.0}, {"CPU": 1.0})
    check_resources(config(*two, "placement.strategy=STRICT_PACK"))
    with pytest.raises(ConfigError, match=r"STRICT_SPREAD wants each on a machine of its own: 1 do"):
        check_resources(config(*two, "placement.strategy=STRICT_SPREAD"))


def test_a_start_waits_for_its_machines_and_asks_for_them(config, monkeypatch) -> None:
    asked: list[dict] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda **wanted: asked.append(wanted))
    monkeypatch.setattr("genrec.cluster.resources.WAIT_LOOK_S", 0.01)
    looks = iter([[], [{"CPU": 1.0}], [{"CPU": 3.0}]])
    last: list[dict] = []

    def nodes() -> list[dict]:
        last[:] = [{"Alive": True, "Resources": machine} for machine in next(looks)]
        return last

    monkeypatch.setattr("ray.nodes", nodes)
    check_resources(config("cluster.workers=2", "cluster.cpus_per_worker=1", "placement.wait_s=60"))
    assert asked[0]["bundles"] == [{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}]
    assert asked[1]["bundles"] == [], "the request is taken back"


def test_a_start_that_waited_in_vain_says_what_is_missing(config, monkeypatch) -> None:
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda **_: None)
    cluster_of(monkeypatch, {"CPU": 1.0})
    with pytest.raises(RunError, match=r"After placement.wait_s \(0.01 s\): .* must leave 1 of the cluster's 1 CPUs"):
        check_resources(config("cluster.workers=2", "cluster.cpus_per_worker=1", "placement.wait_s=0.01"))


def shared_cluster(monkeypatch: pytest.MonkeyPatch, *free_cpus: float) -> None:
    """One machine of 4 CPUs, of which others leave so many from one look to the next."""
    left = list(free_cpus)
    nodes = [{"Alive": True, "NodeID": "a", "Resources": {"CPU": 4.0}}, {"Alive": False, "NodeID": "b"}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("genrec.cluster.resources.WAIT_LOOK_S", 0.01)
    monkeypatch.setattr(
        "ray._private.state.available_resources_per_node",
        lambda: {"a": {"CPU": left.pop(0) if len(left) > 1 else left[0]}},
    )


def test_a_start_waits_for_what_others_hold(config, monkeypatch) -> None:
    two = ("cluster.workers=2", "cluster.cpus_per_worker=1")
    shared_cluster(monkeypatch, 0.0, 2.0, 3.0, 0.0)
    check_resources(config(*two, "placement.wait_s=60"), also_free=True)
    says = r"After placement.wait_s \(0.05 s\) others still hold a part, and of what is free: .* the cluster's 0 CPUs"
    with pytest.raises(RunError, match=says):
        check_resources(config(*two, "placement.wait_s=0.05"), also_free=True)
    check_resources(config(*two), also_free=True)  # no time is set, so Ray Train waits for it
    check_resources(config(*two, "placement.wait_s=60"))
