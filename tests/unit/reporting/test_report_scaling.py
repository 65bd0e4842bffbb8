"""What a report says of scaling: the ratio within rounds, and what the rest is lost in."""

import pytest
from fabricated_bench import scaling_rows, training_rows

from genrec.bench.result import Row
from genrec.reporting.bench_cases import training_cases
from genrec.reporting.bench_charts import training_charts
from genrec.reporting.bench_scaling import loss_table, scalings
from genrec.reporting.bench_summary import training_summary


def test_a_step_may_grow_with_the_workers_and_ratios_are_taken_within_rounds() -> None:
    cases = training_cases(scaling_rows({1: (100.0, 50.0, 80.0), 2: (180.0, 95.0, 120.0)}))
    (found,) = scalings(cases)
    assert found.label == "equal work for each worker"
    assert found.speedups == (1.8, 1.9, 1.5)
    assert found.speedup == 1.8  # and not 120 / 80
    assert (
        "2 workers have 1.8 times the throughput of 1 (equal work for each worker): 90% scaling efficiency, 75% to 95% "
        "over 3 rounds."
    ) in training_summary(cases)
    assert [chart.title for chart in training_charts("x", cases)] == ["Throughput over workers"]


def timed_rows(seconds: dict[int, tuple[tuple[float, float], ...]]) -> list[Row]:
    """As `scaling_rows`, each reading with its seconds of forward and of communication."""
    return [
        {"case": f"{workers} workers", "cluster.workers": workers, "batch.tokens_per_step": 4_096 * workers}
        | {"batch.micro_batches_per_step": workers, "workers": workers, "mode": "full", "status": "ok"}
        | {"repetition": turn, "events_per_s": 4_096 * workers / (forward + sent), "step_s": forward + sent}
        | {"forward_s": forward, "communication_s": sent}
        for workers, of_rounds in seconds.items()
        for turn, (forward, sent) in enumerate(of_rounds)
    ]


def test_what_scaling_loses_is_told_by_part_and_adds_up() -> None:
    cases = training_cases(timed_rows({1: ((0.10, 0.0), (0.20, 0.0)), 2: ((0.11, 0.02), (0.22, 0.04))}))
    (found,) = scalings(cases)
    lost = {one.part: one.lost for one in found.losses}
    assert lost == {"forward": pytest.approx(0.01 / 0.13), "communication": pytest.approx(0.02 / 0.13)}
    assert sum(lost.values()) == pytest.approx(1 - found.efficiency)
    table = loss_table(found)
    assert table is not None
    assert [[cell.text for cell in line] for line in table.lines] == [
        ["forward", "150 ms", "165 ms", "7.7%"],
        ["communication", "0 ms", "30 ms", "15%"],
        ["all", "150 ms", "195 ms", "23%"],
    ]
    (said,) = (line for line in training_summary(cases) if "scaling efficiency" in line)
    assert said.endswith(" Of a step with 2 workers 15% is lost in communication, 7.7% in forward.")


def test_a_step_of_the_same_events_is_ideal_when_it_is_divided() -> None:
    rows = [{**row, "batch.tokens_per_step": 8_192, "batch.micro_batches_per_step": 2} for row in
            timed_rows({1: ((0.20, 0.0),), 2: ((0.10, 0.05),)})]  # fmt: skip
    for row in rows:
        row["events_per_s"] = 8_192 / float(row["step_s"] or 0)
    (found,) = scalings(training_cases(rows))
    assert [(one.part, one.ideal_s, one.lost) for one in found.losses] == [
        ("forward", pytest.approx(0.10), pytest.approx(0)),
        ("communication", 0, pytest.approx(0.05 / 0.15)),
    ]


def test_scaling_without_parts_of_a_step_has_no_table_of_losses() -> None:
    (found,) = scalings(training_cases(scaling_rows({1: (100.0,), 2: (180.0,)})))
    assert found.losses == ()
    assert loss_table(found) is None


def test_scaling_takes_cases_that_differ_in_workers_alone() -> None:
    found = scalings(training_cases(training_rows()))
    assert [scaling.label for scaling in found] == [f"zero_stage {stage}" for stage in range(4)]
    assert [case.workers for case in found[0].cases] == [1, 2, 4]
    assert scalings(training_cases([row for row in training_rows() if row["workers"] == 2])) == []
