"""The append benchmark's comparison: blind to numbers, rows and files, and to nothing else."""

from pathlib import Path

import pytest

import append
from genrec.data.manifest import load_manifest, save_manifest

SEQUENCES = [[1, 2, 3, 2], [2, 2], [3, 1, 1]]
TIMES = [[1, 2, 3, 3], [1, 5], [2, 2, 4]]


@pytest.mark.parametrize(
    ("sequences", "times", "found"),
    [
        (SEQUENCES, TIMES, []),
        ([[3, 2, 1, 2], *SEQUENCES[1:]], TIMES, ["items.parquet"]),  # training counts are others
        ([[2, 1, 3, 2], *SEQUENCES[1:]], TIMES, ["events.items"]),
        (SEQUENCES, [TIMES[0], [1, 4], TIMES[2]], ["manifest.time_range"]),
        (SEQUENCES, [TIMES[0], TIMES[1], [2, 3, 4]], ["events.times"]),
    ],
)
def test_differences(
    tmp_path: Path, write_prepared, sequences: list[list[int]], times: list[list[int]], found: list[str]
) -> None:
    write_prepared(tmp_path / "left", SEQUENCES, times=TIMES)
    write_prepared(tmp_path / "right", sequences, times=times, rows_per_group=2, num_files=2)
    assert append.differences(tmp_path / "left", tmp_path / "right") == found


def test_names_of_actions_are_compared(tmp_path: Path, write_prepared) -> None:
    for name in ("left", "right"):
        write_prepared(tmp_path / name, SEQUENCES, times=TIMES)
    manifest = load_manifest(tmp_path / "right")
    save_manifest(tmp_path / "right", manifest.model_copy(update={"actions": ("skip",)}))
    assert append.differences(tmp_path / "left", tmp_path / "right") == ["manifest.actions"]
