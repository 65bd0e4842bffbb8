import io

import pytest
from rich.console import Console

from genrec.bench.result import Result, Row
from peer_tables import (
    paired_ratios,
    print_quality,
    print_throughput,
    quality_medians,
    seconds_to,
    throughput_medians,
)


def reading(side: str, number: int, events_per_s: float | None, status: str = "ok") -> Row:
    row: Row = {"model": "sasrec-full", "side": side, "round": number, "status": status}
    return row if events_per_s is None else row | {"events_per_s": events_per_s, "peak_memory_bytes": 2**30}


ROWS = [
    reading("genrec", 1, 40.0),
    reading("rectools", 1, 10.0),
    reading("genrec", 2, 100.0),
    reading("rectools", 2, None, "out-of-time"),
    reading("genrec", 3, 20.0),
    reading("rectools", 3, 2.0),
]


def point(side: str, training_s: float, validation: float, test: float | None = None) -> Row:
    return {
        "side": side,
        "status": "ok",
        "message": "",
        "epoch": 1.0,
        "training_s": training_s,
        "validation_ndcg@10": validation,
        "test_ndcg@10": test,
    }


CURVES = [
    point("genrec", 10, 0.03),
    point("genrec", 20, 0.05, 0.04),
    point("genrec", 30, 0.045),
    point("rectools", 100, 0.02, 0.01),
    point("rectools", 200, 0.04, 0.03),
]


def result_of(rows: list[Row], medians: dict[str, object]) -> Result:
    return Result("peers", {}, rows, medians, {}, {}, "abc")


def printed(result: Result, show: object) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(console, result)  # type: ignore[operator]
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_ratios_pair_the_readings_of_one_round_and_skip_what_failed() -> None:
    assert paired_ratios(ROWS, "sasrec-full", "genrec") == [4.0, 10.0]


def test_medians_hold_both_sides_and_the_ratio() -> None:
    medians = throughput_medians(ROWS)["sasrec-full"]
    assert medians["events_per_s"]["genrec"]["median"] == 40.0
    assert medians["events_per_s"]["rectools"]["count"] == 2
    assert medians["times_rectools"]["genrec"]["median"] == 7.0
    assert "rectools" not in medians["times_rectools"]


def test_a_side_without_any_reading_stays_in_the_result() -> None:
    rows = [reading("genrec", 1, 40.0), reading("rectools", 1, None, "out-of-memory")]
    medians = throughput_medians(rows)
    assert medians["sasrec-full"]["events_per_s"]["rectools"] is None
    assert medians["sasrec-full"]["times_rectools"]["genrec"] is None
    assert "out-of-memory" in printed(result_of(rows, medians), print_throughput)


def test_throughput_table_shows_medians_ratio_and_failures() -> None:
    text = printed(result_of(ROWS, throughput_medians(ROWS)), print_throughput)
    assert "7.0" in text
    assert "out-of-time" in text


def test_seconds_to_a_level_is_the_first_point_there() -> None:
    assert seconds_to(CURVES[:3], 0.045) == 20
    assert seconds_to(CURVES[:3], 0.06) is None


def test_quality_compares_at_the_best_level_that_both_reach() -> None:
    medians = quality_medians(CURVES)
    assert medians["best"]["genrec"]["test_ndcg@10"] == 0.04
    assert medians["seconds_to"]["0.0400"] == {"genrec": 20, "rectools": 200}
    assert medians["seconds_to"]["0.0300"] == {"genrec": 10, "rectools": 200}


def test_quality_of_one_side_alone_compares_nothing() -> None:
    failed: Row = {"side": "rectools", "status": "out-of-memory", "message": "killed"}
    rows = [*CURVES[:3], failed]
    medians = quality_medians(rows)
    assert medians["seconds_to"] == {}
    assert "rectools: out-of-memory: killed" in printed(result_of(rows, medians), print_quality)


@pytest.mark.parametrize("text", ["0.0500", "0.0400", "genrec 20 s, rectools 200 s"])
def test_quality_table_shows_best_points_and_times(text: str) -> None:
    assert text in printed(result_of(CURVES, quality_medians(CURVES)), print_quality)
