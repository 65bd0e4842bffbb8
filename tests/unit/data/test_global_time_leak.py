"""What happens after a global-time split must not change what is trained on: windows, item counts, vocabulary."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.config import DataConfig, ExperimentConfig
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.plan import make_plan
from genrec.data.prepare import prepare
from genrec.data.schema import ITEMS_FILE, USERS_FILE
from genrec.data.stream import local_tables, worker_batches

VALIDATION_FROM, TEST_FROM = 1_000, 1_200
Row = tuple[str, str, int]


def past(seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [
        (f"u{int(rng.random() ** 2 * 40)}", f"i{int(rng.random() ** 2 * 60):02d}", rng.randrange(VALIDATION_FROM))
        for _ in range(1_500)
    ]


def futures() -> dict[str, list[Row]]:
    """None, more of the same, and one that turns all counts round with new users and items."""
    rng = random.Random(1)
    calm = [(f"u{rng.randrange(40)}", f"i{rng.randrange(60):02d}", rng.randrange(1_000, 1_400)) for _ in range(300)]
    rare = [(f"u{rng.randrange(40)}", f"i{50 + rng.randrange(10)}", rng.randrange(1_000, 1_400)) for _ in range(2_000)]
    new = [(f"v{rng.randrange(30)}", f"a{rng.randrange(30):02d}", rng.randrange(1_000, 1_400)) for _ in range(2_000)]
    return {"none": [], "calm": calm, "wild": rare + new}


def prepared(folder: Path, rows: list[Row], **filters: int) -> tuple[Path, Manifest]:
    folder.mkdir(parents=True)
    users, items, times = zip(*rows, strict=True)
    pq.write_table(pa.table({"user": users, "item": items, "time": times}), folder / "log.parquet")
    config: dict[str, Any] = {
        "source": {"name": "parquet", "path": str(folder / "log.parquet")},
        "prepared": str(folder / "set"),
        "split": {"name": "global-time", "validation_from": VALIDATION_FROM, "test_from": TEST_FROM},
        **filters,
    }
    return folder / "set", prepare(DataConfig.model_validate(config))


def windows(folder: Path, make_config: Callable[..., ExperimentConfig]) -> Counter[tuple[Any, ...]]:
    """Every training window in original ids: user, inputs, target of the last, times."""
    config = make_config(folder, "sequence.max_length=20")
    plan = make_plan(config)
    span = {"start_step": 0, "end_step": plan.num_steps(1, None), "rank": 0, "workers": 1}
    items = pq.read_table(folder / ITEMS_FILE)["item"].to_pylist()
    users = pq.read_table(folder / USERS_FILE)["user"].to_pylist()
    found: Counter[tuple[Any, ...]] = Counter()
    parts = config.batch.micro_batches_per_step
    for _, batch in worker_batches(local_tables(plan, **span), **span, parts=parts):
        assert batch.users is not None
        offsets = batch.offsets.tolist()
        for row, user in enumerate(batch.users.tolist()):
            tokens = slice(offsets[row], offsets[row + 1])
            names = [items[i - 1] for i in (*batch.items[tokens].tolist(), int(batch.targets[tokens][-1]))]
            found[users[user], *names, *batch.target_times[tokens].tolist()] += 1
    return found


@pytest.mark.parametrize("filters", [{}, {"min_user_events": 8, "min_item_events": 6}], ids=["all", "core"])
def test_the_future_changes_nothing_in_training(
    tmp_path: Path, make_config: Callable[..., ExperimentConfig], filters: dict[str, int]
) -> None:
    sets = {name: prepared(tmp_path / name, past() + later, **filters) for name, later in futures().items()}
    folder, without = sets["none"]
    expected = windows(folder, make_config)
    known = pq.read_table(folder / ITEMS_FILE, columns=["index", "item", "train_count"]).to_pylist()
    assert len(expected) >= 20
    assert without.num_train_items == without.num_items
    for name in ("calm", "wild"):
        folder, manifest = sets[name]
        assert manifest.num_events > without.num_events
        assert manifest.num_train_events == without.num_train_events
        assert manifest.num_train_items == without.num_train_items
        items = pq.read_table(folder / ITEMS_FILE, columns=["index", "item", "train_count"]).to_pylist()
        assert items[: len(known)] == known  # same indices, same counts
        assert all(row["train_count"] == 0 for row in items[len(known) :])
        assert windows(folder, make_config) == expected


def test_no_training_event_is_at_or_after_the_split(
    tmp_path: Path, make_config: Callable[..., ExperimentConfig]
) -> None:
    folder, _ = prepared(tmp_path / "log", past() + futures()["wild"])
    latest = max(max(window[-(len(window) - 2) // 2 :]) for window in windows(folder, make_config))
    assert latest < VALIDATION_FROM


def test_users_and_items_of_the_future_stay_for_evaluation(tmp_path: Path) -> None:
    folder, manifest = prepared(tmp_path / "log", past() + futures()["wild"])
    assert load_manifest(folder) == manifest
    assert manifest.num_events == len(past()) + len(futures()["wild"])
    assert manifest.num_items > manifest.num_train_items > 0
    users = pq.read_table(folder / USERS_FILE)["user"].to_pylist()
    assert any(user.startswith("v") for user in users)


def test_a_filter_counts_training_events_only(tmp_path: Path) -> None:
    rows = [("a", "x", t) for t in range(5)] + [("b", "x", 1)] + [("b", "x", 1_100 + t) for t in range(9)]
    rows += [("a", "y", 2)] + [("a", "y", 1_100 + t) for t in range(9)]
    folder, manifest = prepared(tmp_path / "log", rows, min_user_events=3, min_item_events=3)
    assert pq.read_table(folder / USERS_FILE)["user"].to_pylist() == ["a"]  # b has one event in time
    assert pq.read_table(folder / ITEMS_FILE)["item"].to_pylist() == ["x"]  # y has one
    assert manifest.filtered == {"min_user_events": 10, "min_item_events": 10}
