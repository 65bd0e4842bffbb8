"""Preparing a log: against a reference in plain Python, and what must not depend on how the log is stored."""

import csv
import gzip
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepare_reference import Event, read_prepared, reference

from genrec.config import DataConfig
from genrec.data import sources
from genrec.data.manifest import load_manifest
from genrec.data.prepare import ensure_prepared, prepare
from genrec.data.ray_session import ensure_ray
from genrec.data.sequences import ROW_GROUP_EVENTS, row_group_ends
from genrec.errors import DataError

COLUMNS = {"action": "action", "value": "value"}


def random_log(seed: int, num_events: int = 3_000, *, string_ids: bool = True) -> list[Event]:
    """Skewed users and items, and many events of the same second."""
    rng = random.Random(seed)
    users = [f"u{number}" if string_ids else number * 7919 for number in range(60)]
    items = [f"i{number:02d}" if string_ids else number for number in range(80)]
    return [
        Event(
            users[int(rng.random() ** 2 * 60)],
            items[int(rng.random() ** 3 * 80)],
            rng.randrange(-5, 20),
            rng.choice(["stream", "skip", "save", None]),
            rng.choice([0.0, 1.0, 2.5, 5.0, None]),
        )
        for _ in range(num_events)
    ]


def write_parquet(folder: Path, events: list[Event], num_files: int = 1, row_group_size: int = 100_000) -> Path:
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(events)), num_files)):
        table = pa.Table.from_pylist([events[row]._asdict() for row in rows])
        pq.write_table(table, folder / f"log-{number:03d}.parquet", row_group_size=row_group_size)
    return folder


def write_csv(path: Path, events: list[Event]) -> Path:
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, Event._fields)
        writer.writeheader()
        writer.writerows(event._asdict() for event in events)
    return path


def config(tmp_path: Path, path: Path, name: str = "parquet", **settings: Any) -> DataConfig:
    source = {"name": name, "path": str(path), "columns": COLUMNS}
    return DataConfig.model_validate({"source": source, "prepared": str(tmp_path / "prepared"), **settings})


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"min_user_events": 30, "min_item_events": 20},
        {"min_user_events": 20, "min_item_events": 15, "min_value": 1.0},
    ],
)
def test_equals_the_reference(tmp_path: Path, filters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PART_ROWS", 400)  # several parts a file
    events = random_log(seed=len(filters))
    log = write_parquet(tmp_path / "log", events, num_files=3, row_group_size=150)
    manifest = prepare(config(tmp_path, log, num_shards=3, **filters))
    expected, found = reference(events, **filters), read_prepared(tmp_path / "prepared")
    assert found.sequences == expected.sequences
    assert found.items == expected.items
    num_kept = sum(len(sequence) for sequence in expected.sequences.values())
    assert 0 < manifest.num_events == num_kept
    assert sum(manifest.filtered.values()) == len(events) - num_kept
    assert manifest.filtered.keys() <= {"min_value", "min_user_events", "min_item_events"}
    assert bool(filters) == (num_kept < len(events))
    assert len(manifest.files) == 3 and manifest.rejected == {}


def test_filters_repeat_until_nothing_changes(tmp_path: Path) -> None:
    # A chain: dropping the item that occurs once makes its user short, which makes the next item rare, and so on.
    events = [Event(f"u{n}", f"i{n + shift}") for n in range(6) for shift in (0, 1)]
    events += [Event(f"core{n}", f"core{m}") for n in range(2) for m in range(2)]
    log = write_parquet(tmp_path / "log", events)
    manifest = prepare(config(tmp_path, log, min_user_events=2, min_item_events=2))
    assert set(read_prepared(tmp_path / "prepared").sequences) == {"core0", "core1"}
    assert sum(manifest.filtered.values()) == 12


def test_storage_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = random_log(seed=5, string_ids=False)
    one = prepare(config(tmp_path / "one", write_parquet(tmp_path / "log1", events)))
    monkeypatch.setattr(sources, "PART_ROWS", 100)
    many = prepare(config(tmp_path / "many", write_parquet(tmp_path / "log2", events, 4, row_group_size=70)))
    text = prepare(config(tmp_path / "text", write_csv(tmp_path / "log.csv.gz", events), "csv"))
    assert one.content_hash == many.content_hash == text.content_hash
    assert pq.read_schema(tmp_path / "text/prepared/users.parquet").field("user").type == pa.int64()
    assert read_prepared(tmp_path / "text/prepared").sequences == reference(events).sequences
    changed = [events[0]._replace(item=79), *events[1:]]
    other = prepare(config(tmp_path / "other", write_csv(tmp_path / "other.csv.gz", changed), "csv"))
    assert other.content_hash != one.content_hash


def test_shards_hold_the_same_users_in_mixed_order(tmp_path: Path) -> None:
    events = [Event(user, user % 7, time) for user in range(500) for time in range(3)]
    log = write_parquet(tmp_path / "log", events)
    prepare(config(tmp_path / "one", log, num_shards=1))
    prepare(config(tmp_path / "four", log, num_shards=4))
    one, four = read_prepared(tmp_path / "one/prepared"), read_prepared(tmp_path / "four/prepared")
    assert one.sequences == four.sequences
    manifest = load_manifest(tmp_path / "four/prepared")
    assert [file.path for file in manifest.files] == [f"sequences/part-{shard:05d}.parquet" for shard in range(4)]
    assert all(sum(group.rows for group in file.row_groups) > 60 for file in manifest.files)
    # 500 users are few, so a row group holds 64: neighbours must be far apart in the ids.
    assert [group.rows for group in load_manifest(tmp_path / "one/prepared").files[0].row_groups] == [64] * 7 + [52]
    steps = np.abs(np.diff(one.order))
    assert np.median(steps) > 80 and (steps == 1).mean() < 0.05


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "log", [Event("u", 1, 2)])
    values = {"source": {"name": "parquet", "path": "log"}, "prepared": "deep/set"}
    ensure_ray()
    monkeypatch.chdir(tmp_path)  # the tasks run where Ray started
    assert prepare(DataConfig.model_validate(values)).num_events == 1
    assert read_prepared(tmp_path / "deep/set").sequences == {"u": [(1, 2, None)]}


def test_order_within_a_second_is_by_microsecond_then_by_log(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user": ["a"] * 5,
            "item": [1, 2, 3, 4, 5],
            "time": pa.array([2_000_900, 2_000_100, 2_000_100, 1_999_999, 2_000_500], pa.timestamp("us")),
        }
    )
    (tmp_path / "log").mkdir()
    pq.write_table(table, tmp_path / "log/0.parquet")
    manifest = prepare(
        DataConfig.model_validate(
            {"source": {"name": "parquet", "path": str(tmp_path / "log")}, "prepared": str(tmp_path / "prepared")}
        )
    )
    (sequence,) = read_prepared(tmp_path / "prepared").sequences.values()
    assert [item for item, _, _ in sequence] == [4, 2, 3, 5, 1]
    assert [time for _, time, _ in sequence] == [1, 2, 2, 2, 2]
    assert manifest.time_range == (1, 2) and manifest.has_times


def test_global_time_counts_training_events_before_validation(tmp_path: Path) -> None:
    events = random_log(seed=9)
    log = write_parquet(tmp_path / "log", events)
    split = {"name": "global-time", "validation_from": 10, "test_from": 15}
    manifest = prepare(config(tmp_path, log, split=split))
    found = read_prepared(tmp_path / "prepared")
    assert manifest.num_train_events == sum(event.time < 10 for event in events)
    assert {item: trained for item, _, trained in found.items} == {
        item: sum(event.time < 10 and event.item == item for event in events) for item, _, _ in found.items
    }


def test_row_groups_are_bounded_in_users_and_events() -> None:
    assert row_group_ends(np.full(130, 3), 64) == [64, 128, 130]
    half = ROW_GROUP_EVENTS // 2
    assert row_group_ends(np.array([half, half, 1, 2 * ROW_GROUP_EVENTS, 1, 1]), 64) == [2, 3, 4, 6]


def test_action_names_by_falling_count(tmp_path: Path) -> None:
    actions = ["skip", "stream", None, "stream", "save", "stream", "skip", "save"]
    log = write_parquet(tmp_path / "log", [Event("u", 1, time, action) for time, action in enumerate(actions)])
    manifest = prepare(config(tmp_path, log))
    assert manifest.actions == ("stream", "save", "skip")
    assert [action for _, _, action in read_prepared(tmp_path / "prepared").sequences["u"]] == actions


def test_item_table_is_joined(tmp_path: Path) -> None:
    log = write_parquet(tmp_path / "log", [Event("u", item, time) for time, item in enumerate([3, 1, 3])])
    info = pa.table({"item": [1, 2, 3], "title": ["One", "Two", None], "type": ["track", "track", "episode"]})
    pq.write_table(info, tmp_path / "items.parquet")
    source = {"name": "parquet", "path": str(log), "items_path": str(tmp_path / "items.parquet")}
    prepare(DataConfig.model_validate({"source": source, "prepared": str(tmp_path / "prepared")}))
    items = pq.read_table(tmp_path / "prepared/items.parquet")
    assert items["item"].to_pylist() == [3, 1]
    assert items["title"].to_pylist() == [None, "One"]
    assert items["type"].to_pylist() == ["episode", "track"]

    pq.write_table(pa.concat_tables([info, info.slice(0, 1)]), tmp_path / "items.parquet")
    with pytest.raises(DataError, match="4 rows for 3 items"):
        prepare(DataConfig.model_validate({"source": source, "prepared": str(tmp_path / "again")}))


def test_synthetic_log_brings_its_best_known_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("genrec.data.synthetic")

    def write_log(source: Any, folder: Path, progress: Callable[[int], None], run: Any) -> dict[str, float]:
        folder.mkdir(parents=True, exist_ok=True)
        events = [Event(f"u{n % 10}", f"t{n % 7}", n, "stream", 3.0) for n in range(source.num_events // 1_000)]
        write_parquet(folder / "log", events)
        for _ in range(4):
            progress(source.num_events // 4)
        info = {"item": [f"t{n}" for n in range(7)], "type": ["track"] * 7, "title": [f"Track {n}" for n in range(7)]}
        pq.write_table(pa.table(info), folder / "items.parquet")
        return {"hr@10": 0.41}

    monkeypatch.setattr(module, "write_log", write_log, raising=False)
    monkeypatch.setitem(sys.modules, "genrec.data.synthetic", module)
    values = {"source": {"name": "synthetic", "num_events": 100_000}, "prepared": str(tmp_path / "prepared")}
    opened: list[float] = []
    manifest = prepare(
        DataConfig.model_validate(values), progress=lambda phase, f, _: opened.append(f) if phase == "open" else None
    )
    assert manifest.best_known == {"hr@10": 0.41} and opened == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert (manifest.num_users, manifest.num_items, manifest.num_events) == (10, 7, 100)
    assert manifest.actions == ("stream",)
    assert pq.read_table(tmp_path / "prepared/items.parquet")["type"].to_pylist() == ["track"] * 7


def test_prepares_once_and_only_for_the_same_settings(tmp_path: Path) -> None:
    log = write_parquet(tmp_path / "log", random_log(seed=1, num_events=300))
    first_config = config(tmp_path, log, num_shards=2)
    phases: list[tuple[str, float, float]] = []
    first = ensure_prepared(first_config, lambda *progress: phases.append(progress))
    whole = [(phase, total) for phase, done, total in phases if done == total]
    assert whole == [("open", 1.0), ("read", 300), ("write", 300), ("finish", 1.0)]
    changed_at = (tmp_path / "prepared/manifest.json").stat().st_mtime_ns
    assert ensure_prepared(first_config.model_copy(update={"max_rejected_fraction": 0.5})) == first
    with pytest.raises(DataError, match=r"--overwrite"):
        prepare(first_config)
    other = config(tmp_path, log, num_shards=2, min_user_events=3, split={"name": "leave-one-out"})
    with pytest.raises(DataError, match=r"data.min_user_events was 1 and is 3\);.* --overwrite"):
        ensure_prepared(other)
    assert (tmp_path / "prepared/manifest.json").stat().st_mtime_ns == changed_at
    assert prepare(other, overwrite=True).filtered.keys() == {"min_user_events"}
    assert ensure_prepared(other).config["min_user_events"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "prepared"]


def test_a_prepared_set_needs_no_ray(tmp_path: Path) -> None:
    log = write_parquet(tmp_path / "log", random_log(seed=1, num_events=50))
    data = config(tmp_path, log)
    prepare(data)
    program = (
        "import sys; from genrec.config import DataConfig; from genrec.data.prepare import ensure_prepared\n"
        f"print(ensure_prepared(DataConfig.model_validate_json({data.model_dump_json()!r})).num_events)\n"
        "print(sorted({'ray', 'torch', 'deepspeed', 'pandas'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.stdout.split("\n")[:2] == ["50", "[]"], done.stderr
