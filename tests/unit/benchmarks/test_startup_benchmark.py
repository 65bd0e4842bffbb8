"""The start-up benchmark reads the `start` line of a run."""

from pathlib import Path

import pytest

from genrec.bench.result import Row
from startup import phases_of, start_once, summarize_rows

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
    rows: list[Row] = [
        {"launcher": name, "status": "ok", **phases_of(RECORDS), "process_s": s}
        for name, s in (("ray", 4), ("local", 1), ("ray", 8))
    ]
    rows.append({"launcher": "ray", "status": "out-of-time", "error": "hung"})
    medians = summarize_rows(rows)
    assert medians["ray"]["process_s"] == {"median": 6.0, "minimum": 4.0, "maximum": 8.0, "count": 2}
    assert medians["local"]["process_s"]["median"] == 1.0


def test_a_run_that_was_resumed_has_two_starts() -> None:
    with pytest.raises(ValueError, match="too many values"):
        phases_of([RECORDS[0], *RECORDS])


def test_a_start_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = start_once(str(tmp_path / "missing.yaml"), [], "local")
    assert row["status"] == "failed"
    assert "missing.yaml" in str(row["error"])
