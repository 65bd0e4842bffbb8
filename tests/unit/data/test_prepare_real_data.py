"""Public data sets come out with their published numbers, and with the targets that their order implies."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepare_reference import read_prepared

from genrec.config import DataConfig, LeaveOneOutSplit
from genrec.data.manifest import Manifest
from genrec.data.prepare import prepare
from genrec.data.split import history_ends

pytestmark = pytest.mark.skipif(
    "GENREC_DATA" not in os.environ, reason="GENREC_DATA names no folder of public data sets"
)


def prepared(tmp_path: Path, path: str, **source: Any) -> Manifest:
    values = {"source": {"path": f"$GENREC_DATA/{path}", **source}, "prepared": str(tmp_path / "prepared")}
    return prepare(DataConfig.model_validate(values))


def lines(path: str) -> Iterator[list[int]]:
    with gzip.open(Path(os.environ["GENREC_DATA"]) / path, "rt") as file:
        for line in file:
            yield [int(word) for word in line.split()]


def test_ml_1m(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, "ml-1m/ml-1m.txt.gz", name="sequence-text", layout="pairs")
    assert (manifest.num_users, manifest.num_items, manifest.num_events) == (6_040, 3_416, 999_611)
    assert manifest.num_train_events == 999_611 - 2 * 6_040 and not manifest.has_times
    assert manifest.num_row_groups == -(-6_040 // 94)  # 6,040 // 64 users in each
    expected: dict[int, list[int]] = {}
    for user, item in lines("ml-1m/ml-1m.txt.gz"):
        expected.setdefault(user, []).append(item)
    found = read_prepared(tmp_path / "prepared").sequences
    assert {user: [item for item, _, _ in sequence] for user, sequence in found.items()} == expected


def test_beauty_targets_are_the_last_items(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, "amazon-beauty/sequences.txt.gz", name="sequence-text", layout="lists")
    assert (manifest.num_users, manifest.num_items, manifest.num_events) == (22_363, 12_101, 198_502)
    found = read_prepared(tmp_path / "prepared").sequences
    expected = {line[0]: line[1:] for line in lines("amazon-beauty/sequences.txt.gz")}
    assert found.keys() == expected.keys()
    for user, items in expected.items():
        offsets = np.array([0, len(items)])
        ((test,), _), ((validation,), _) = (
            history_ends(LeaveOneOutSplit(), role, np.arange(len(items)), offsets) for role in ("test", "validation")
        )
        assert [item for item, _, _ in found[user]] == items
        assert (found[user][test][0], found[user][validation][0]) == (items[-1], items[-2])
        assert [time for _, time, _ in found[user]] == list(range(len(items)))


def test_ml_100k(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, "ml-100k", name="recbole")
    assert (manifest.num_users, manifest.num_items, manifest.num_events) == (943, 1_682, 100_000)
    assert manifest.time_range == (874_724_710, 893_286_638) and manifest.has_times
