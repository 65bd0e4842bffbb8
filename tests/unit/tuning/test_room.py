"""How many trials have room at a time, so that none waits for half of its workers."""

import pytest

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
