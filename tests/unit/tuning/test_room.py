"""How many trials have room at a time, so that none waits for half of its workers."""

from types import SimpleNamespace

import pytest
from tiny_sweep import director_of, loaded

from genrec.cluster.room import Machine
from genrec.errors import ConfigError
from genrec.tuning import ray_sweep, ray_trial
from genrec.tuning.room import Need, concurrency, need_of, trials_that_fit


@pytest.mark.parametrize(
    ("need", "machines", "number"),
    [
        (Need(2, 0.5, 0, 1.0), [{"CPU": 2}], 1),
        (Need(2, 0.5, 0, 1.0), [{"CPU": 3.9}], 1),
        (Need(2, 0.5, 0, 1.0), [{"CPU": 4}], 2),
        (Need(2, 0.1, 0, 1.0), [{"CPU": 2.4}], 2),
        (Need(2, 1.0, 0, 1.0), [{"CPU": 3}, {"CPU": 3}], 2),
        (Need(2, 1.0, 0, 1.0), [{"CPU": 1.5}] * 4, 1),  # six in sum, and each machine holds one part only
        (Need(4, 1.0, 1, 1.0), [{"CPU": 32, "GPU": 8}], 2),  # the GPUs decide
        (Need(2, 0.5, 0, 1.0, validation_cpus=1.0), [{"CPU": 5}], 1),
        (Need(2, 1.0, 0, 1.0), [{"CPU": 2}], 0),
    ],
)
def test_trials_that_fit(need, machines, number) -> None:
    assert trials_that_fit(need, machines) == number


def test_the_largest_trial_of_a_space_decides_and_a_wish_only_lowers() -> None:
    machines = [{"CPU": 12}]
    small, large = Need(1, 1.0, 0, 1.0), Need(3, 1.0, 0, 1.0)
    assert concurrency([small], machines, None) == 6
    assert concurrency([small, large], machines, None) == 3
    assert concurrency([small], machines, 2) == 2
    assert concurrency([small], machines, 50) == 6
    assert concurrency([Need(20, 1.0, 0, 1.0)], machines, None) == 1


def test_a_range_of_workers_needs_room_for_all(base, make_config) -> None:
    config = base.model_copy(
        update={"cluster": base.cluster.model_copy(update={"workers": (1, 4), "cpus_per_worker": 0.5})}
    )
    assert need_of(config, 1.0) == Need(4, 0.5, 0.0, 1.0)


def lost_machines(monkeypatch, *counts: int) -> None:
    """From one look at the cluster to the next it has so many machines of two CPUs."""
    left = list(counts)

    def alive() -> list[Machine]:
        return [Machine(2.0)] * (left.pop(0) if len(left) > 1 else left[0])

    monkeypatch.setattr(ray_sweep, "alive_machines", alive)


def test_no_trial_is_asked_for_while_machines_are_gone(base, monkeypatch) -> None:
    """Or all that are left would be rejected for want of them."""
    asked, told = [], []
    director = SimpleNamespace(
        running=list,
        must_end=lambda: "no room" if len(told) > 2 else None,
        take_room=lambda problem, *_: told.append(problem),
        next_trial=lambda: asked.append(1),
    )
    cluster = base.cluster.model_copy(update={"workers": 2, "cpus_per_worker": 1.0})
    asking = ray_sweep._Asking(director, ray_sweep._Room(director, base.model_copy(update={"cluster": cluster})))
    lost_machines(monkeypatch, 2)
    asking.suggest("a")
    assert (len(asked), told) == (1, [])
    lost_machines(monkeypatch, 1)
    assert [asking.suggest("b"), asking.suggest("b")] == [None, None]
    assert len(asked) == 1
    assert all("must leave 1 of the cluster's 2 CPUs" in problem for problem in told)
    lost_machines(monkeypatch, 2)
    asking.suggest("b")
    assert len(asked) == 2, "they have come back"
    lost_machines(monkeypatch, 1)
    assert asking.suggest("c") == ray_sweep.Searcher.FINISHED, "they have not, for too long"


def test_the_machines_are_judged_by_the_trials_that_run(tmp_path, base, monkeypatch) -> None:
    space = {"cluster.workers": {"choice": [1, 2, 3]}}
    base = base.model_copy(update={"cluster": base.cluster.model_copy(update={"workers": 1})})
    fixed = {"cluster.cpus_per_worker": 1.0, "batch.micro_batches_per_step": 6}
    spec, loaded_base = loaded(tmp_path, base, space=space, fixed=fixed, searcher={"name": "grid"}, budget={})
    director = director_of(spec, loaded_base)
    one, two, three = (director.next_trial() for _ in range(3))
    told = []
    monkeypatch.setattr(director, "take_room", lambda problem, *_: told.append(problem))
    room = ray_sweep._Room(director, loaded_base)
    lost_machines(monkeypatch, 1)
    room.look()
    assert told == [None], "one of them has room"
    one.state = "finished"
    room.look()
    assert "(2 * 1.0 = 2) must leave 1 of the cluster's 2 CPUs" in told[1]
    two.state = three.state = "finished"
    room.look()
    assert told[2] is None, "nothing runs, and nothing is lost"


def test_a_trial_waits_for_machines_that_are_away(base, monkeypatch) -> None:
    looks = []

    def check(config, machines) -> None:
        looks.append(machines)
        if len(looks) < 3:
            raise ConfigError("too small.")

    monkeypatch.setattr("genrec.cluster.room.check_room", check)
    monkeypatch.setattr("genrec.cluster.resources.alive_machines", list)
    monkeypatch.setattr(ray_trial, "ROOM_LOOK_S", 0.0)
    ray_trial._wait_for_room(base)
    assert len(looks) == 3
    placement = base.placement.model_copy(update={"wait_s": 5.0})
    ray_trial._wait_for_room(base.model_copy(update={"placement": placement}))
    assert len(looks) == 3, "the run waits itself, and asks for machines"
