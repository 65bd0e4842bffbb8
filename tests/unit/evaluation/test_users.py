"""The batches that a role evaluates: every user once, the right window, nothing from the future."""

from pathlib import Path

import numpy as np
import pytest

from genrec.config import GlobalTimeSplit
from genrec.data.manifest import load_manifest
from genrec.errors import DataError
from genrec.evaluation.users import EvaluationBatch, batch_borders, evaluation_batches

NUM_ITEMS = 30


def random_sequences(num_users: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, NUM_ITEMS + 1, rng.integers(1, 20)).tolist() for _ in range(num_users)]


def rows_of(batches: list[EvaluationBatch]) -> dict[int, dict[str, list[int]]]:
    """What each user was given: window, times, query times, target, seen items."""
    rows = {}
    for users in batches:
        offsets = users.batch.offsets.tolist()
        for row, user in enumerate(users.users.tolist()):
            assert user not in rows, "a user came twice"
            part = slice(offsets[row], offsets[row + 1])
            rows[user] = {
                "window": users.batch.items[part].tolist(),
                "times": users.batch.times[part].tolist(),
                "query_times": users.batch.target_times[part].tolist(),
                "target": users.targets[row].tolist(),
                "seen": users.seen_items[users.seen_rows == row].tolist(),
            }
    return rows


@pytest.mark.parametrize("role", ["validation", "test"])
def test_each_user_gets_the_window_before_the_target(tmp_path: Path, write_prepared, make_config, role: str) -> None:
    sequences = random_sequences(57)
    times = [[100 * user + 3 * place for place in range(len(items))] for user, items in enumerate(sequences)]
    folder = write_prepared(tmp_path / "set", sequences, times=times, rows_per_group=10, num_files=2)
    config = make_config(folder, "evaluation.users_per_batch=8")
    rows = rows_of(list(evaluation_batches(config, load_manifest(folder), role)))
    assert sorted(rows) == [user for user, items in enumerate(sequences) if len(items) >= 3]
    for user, row in rows.items():
        end = len(sequences[user]) - (1 if role == "test" else 2)
        start = max(0, end - config.sequence.max_length)
        assert row == {
            "window": sequences[user][start:end],
            "times": times[user][start:end],
            "query_times": times[user][start + 1 : end + 1],
            "target": sequences[user][end],
            "seen": sequences[user][:end],
        }


def test_global_time_evaluates_the_first_event_of_the_period(tmp_path: Path, write_prepared, make_config) -> None:
    split = GlobalTimeSplit(name="global-time", validation_from=100, test_from=200)
    sequences = [[1, 2, 3, 4], [5, 6], [7, 8, 9], [1, 9]]
    times = [[10, 110, 120, 210], [10, 20], [120, 220, 230], [210, 220]]
    folder = write_prepared(tmp_path / "set", sequences, times=times, split=split)
    manifest, config = load_manifest(folder), make_config(folder)
    validation = rows_of(list(evaluation_batches(config, manifest, "validation")))
    test = rows_of(list(evaluation_batches(config, manifest, "test")))
    assert {user: (row["window"], row["target"]) for user, row in validation.items()} == {0: ([1], 2)}
    assert {user: (row["window"], row["target"]) for user, row in test.items()} == {0: ([1, 2, 3], 4), 2: ([7], 8)}


@pytest.mark.parametrize("world_size", [2, 3, 7, 80])
def test_shares_hold_every_user_once(tmp_path: Path, write_prepared, make_config, world_size: int) -> None:
    folder = write_prepared(tmp_path / "set", random_sequences(61), rows_per_group=9, num_files=3)
    manifest, config = load_manifest(folder), make_config(folder)
    whole = rows_of(list(evaluation_batches(config, manifest, "test")))
    batches = [
        batch
        for rank in range(world_size)
        for batch in evaluation_batches(config, manifest, "test", rank=rank, world_size=world_size)
    ]
    assert rows_of(batches) == whole


def test_a_sample_is_the_same_for_any_number_of_workers(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", [[1, 2, 3, 4]] * 200, rows_per_group=7, num_files=2)
    manifest, config = load_manifest(folder), make_config(folder)
    alone = rows_of(list(evaluation_batches(config, manifest, "validation", max_users=33)))
    assert len(alone) == 33
    shared = [
        batch
        for rank in range(3)
        for batch in evaluation_batches(config, manifest, "validation", rank=rank, world_size=3, max_users=33)
    ]
    assert rows_of(shared) == alone
    everyone = rows_of(list(evaluation_batches(config, manifest, "validation", max_users=1_000)))
    assert len(everyone) == 200


def test_batches_hold_their_limits_and_neighbours_in_length(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", random_sequences(200))
    config = make_config(folder, "evaluation.users_per_batch=16", "batch.tokens_per_step=40")  # 4 x 20 tokens
    batches = list(evaluation_batches(config, load_manifest(folder), "test"))
    assert all(len(users.users) <= 16 for users in batches)
    assert all(users.batch.num_tokens <= 80 for users in batches)
    spreads = [int(np.ptp(np.diff(users.batch.offsets.numpy()))) for users in batches]
    assert max(spreads) <= 2


def test_a_user_longer_than_the_token_limit_is_a_batch_of_its_own() -> None:
    assert batch_borders(np.array([3, 50, 4, 4]), 10, 8).tolist() == [0, 1, 2, 4]
    assert batch_borders(np.array([], dtype=np.int64), 10, 8).tolist() == [0]


def test_without_the_filter_nothing_is_listed_as_seen(tmp_path: Path, write_prepared, make_config) -> None:
    sequences = random_sequences(20)
    folder = write_prepared(tmp_path / "set", sequences)
    manifest = load_manifest(folder)
    filtered = rows_of(list(evaluation_batches(make_config(folder), manifest, "test")))
    config = make_config(folder, "evaluation.filter_seen=false")
    rows = rows_of(list(evaluation_batches(config, manifest, "test")))
    assert rows == {user: {**row, "seen": []} for user, row in filtered.items()}


def test_a_damaged_file_is_named(tmp_path: Path, write_prepared, make_config) -> None:
    folder = write_prepared(tmp_path / "set", random_sequences(20))
    manifest = load_manifest(folder)
    part = folder / manifest.files[0].path
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(DataError, match=r"part-00000\.parquet cannot be read"):
        list(evaluation_batches(make_config(folder), manifest, "test"))
