"""The start-up benchmark reads the `start` line of a run."""

import pytest

from startup import phases_of, summarize_rows

RECORDS = [
    {
        "kind": "start",
        "workers": 2,
        "seconds_to_first_step": 9.0,
        "startup": {"process": 5.0, "model": 1.0, "engine": 2.0, "first_step": 1.0},
        "first_batch_s": 0.5,
    },
    {"kind": "train", "step": 1},
]


def test_phases_are_columns_and_add_up() -> None:
    row = phases_of(RECORDS)
    parts = [float(row[f"{name}_s"] or 0) for name in ("process", "model", "engine", "first_step")]
    assert sum(parts) == row["seconds_to_first_step"] == 9.0
    assert row["first_batch_s"] == 0.5


def test_medians_by_launcher() -> None:
    rows = [
        {"launcher": name, **phases_of(RECORDS), "process_s": s} for name, s in (("ray", 4), ("local", 1), ("ray", 8))
    ]
    medians = summarize_rows(rows)
    assert medians["ray"]["process_s"] == {"median": 6.0, "minimum": 4.0, "maximum": 8.0, "count": 2}
    assert medians["local"]["process_s"]["median"] == 1.0


def test_a_run_that_was_resumed_has_two_starts() -> None:
    with pytest.raises(ValueError, match="too many values"):
        phases_of([RECORDS[0], *RECORDS])
