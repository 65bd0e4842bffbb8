"""Appending new files to a prepared set gives what preparing everything at once gives, and touches what it must."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prepared_content import Content, read_content

from genrec import cli
from genrec.config import DataConfig, ExperimentConfig
from genrec.data.append import append
from genrec.data.manifest import load_manifest
from genrec.data.plan import make_plan
from genrec.data.prepare import ensure_prepared, prepare
from genrec.data.sequence_files import read_row_group
from genrec.data.stream import local_tables, worker_batches
from genrec.errors import ConfigError, DataError
from genrec.evaluation.users import evaluation_batches

Row = dict[str, Any]
LOG_SCHEMA = pa.schema(
    [
        ("user", pa.string()),
        ("item", pa.int64()),
        ("time", pa.int64()),
        ("action", pa.string()),
        ("value", pa.float64()),
    ]
)


def random_rows(rng: random.Random, num_rows: int, num_users: int, num_items: int, first: int, last: int) -> list[Row]:
    """Skewed users and items, many events of one second, and a few bad rows."""
    actions = ["stream", "skip", None] if first == 0 else ["stream", "save", "share", None]
    return [
        {
            "user": None if rng.random() < 0.01 else f"u{int(rng.random() ** 2 * num_users)}",
            "item": int(rng.random() ** 3 * num_items),
            "time": 10**15 if rng.random() < 0.01 else rng.randrange(first, last),
            "action": rng.choice(actions),
            "value": rng.choice([0.0, 1.0, 3.0]),
        }
        for _ in range(num_rows)
    ]


def write_day(folder: Path, name: str, rows: list[Row]) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=LOG_SCHEMA), folder / f"{name}.parquet", row_group_size=100)


def data_config(tmp_path: Path, prepared: str = "set", **settings: Any) -> DataConfig:
    source = {"name": "parquet", "path": str(tmp_path / "log"), "columns": {"action": "action", "value": "value"}}
    values = {"source": source, "prepared": str(tmp_path / prepared), "max_rejected_fraction": 0.2, "num_shards": 3}
    return DataConfig.model_validate(values | settings)


def write_items(path: Path, num_items: int) -> None:
    info = {"item": list(range(num_items)), "type": ["track"] * num_items, "title": [f"T{n}" for n in range(num_items)]}
    pq.write_table(pa.table(info), path)


def prepare_and_append(tmp_path: Path, days: list[list[Row]], **settings: Any) -> tuple[DataConfig, Content, Content]:
    """The first day prepared and the others appended, and all of them prepared at once."""
    config = data_config(tmp_path, **settings)
    for number, rows in enumerate(days):
        write_day(tmp_path / "log", f"day-{number}", rows)
        if number == 0:
            prepare(config)
        else:
            assert append(config).num_files == 1
    prepare(config.model_copy(update={"prepared": str(tmp_path / "at-once")}))
    return config, read_content(tmp_path / "set"), read_content(tmp_path / "at-once")


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (1, {}),
        (2, {"min_value": 1.0}),
        (4, {"keep_values": True}),
        (3, {"split": {"name": "global-time", "validation_from": 45, "test_from": 55}, "max_time": 58}),
    ],
)
def test_equals_everything_at_once(
    tmp_path: Path, seed: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genrec.data.append.FILE_EVENTS", 10**6 if seed == 1 else 500)
    rng = random.Random(seed)
    write_items(tmp_path / "items.parquet", 120)
    # Late events, events of the same second as old ones, new users, new items, new actions; the last day is small.
    days = [
        random_rows(rng, 3_000, 300, 80, 0, 50),
        random_rows(rng, 400, 400, 100, 30, 60),
        random_rows(rng, 20, 500, 120, 0, 70),
    ]
    config, appended, at_once = prepare_and_append(tmp_path, days, **settings)
    assert appended == at_once
    assert appended["num_users"] > 250 and appended["rejected"].keys() >= {"null user", "time out of range"}
    manifest = load_manifest(config.prepared)
    assert set(manifest.actions[2:]) == {"save", "share"}
    assert any(file.num_superseded for file in manifest.files) and manifest.best_known == {}


def test_old_numbers_stay(tmp_path: Path) -> None:
    rng = random.Random(5)
    config = data_config(tmp_path)
    write_day(tmp_path / "log", "day-0", random_rows(rng, 2_000, 200, 80, 0, 50))
    first = prepare(config)
    before = [pq.read_table(tmp_path / f"set/{name}.parquet") for name in ("users", "items")]
    write_day(tmp_path / "log", "day-1", random_rows(rng, 200, 400, 160, 40, 60))
    second = append(config).manifest
    for old, name, role in zip(before, ("users", "items"), ("user", "item"), strict=True):
        new = pq.read_table(tmp_path / f"set/{name}.parquet")
        assert len(new) > len(old) and new[role].slice(0, len(old)).equals(old[role])
    added = pq.read_table(tmp_path / "set/items.parquet").slice(first.num_items)
    assert added["count"].to_pylist() == sorted(added["count"].to_pylist(), reverse=True)
    assert second.actions[: len(first.actions)] == first.actions
    assert ensure_prepared(config) == second


def test_only_files_of_touched_users_change(tmp_path: Path) -> None:
    config = data_config(tmp_path)
    rows = [{"user": f"u{n}", "item": n % 7, "time": t, "value": 1.0} for n in range(600) for t in range(3)]
    write_day(tmp_path / "log", "day-0", rows)
    prepare(config)
    inodes = {path.name: path.stat().st_ino for path in (tmp_path / "set/sequences").iterdir()}
    write_day(tmp_path / "log", "day-1", [{"user": "u5", "item": 3, "time": 9}, {"user": "new", "item": 8, "time": 9}])
    manifest = append(config).manifest
    assert {name: (tmp_path / "set/sequences" / name).stat().st_ino for name in inodes} == inodes
    (added,) = [file for file in manifest.files if Path(file.path).name not in inodes]
    assert [group.events for group in added.row_groups] == [5]
    assert sorted(file.num_superseded for file in manifest.files) == [0, 0, 0, 1]
    # A file of which more than three in ten rows are superseded is given up.
    write_day(tmp_path / "log", "day-2", [{"user": f"u{n}", "item": 3, "time": 10} for n in range(400)])
    manifest = append(config).manifest
    assert not {Path(file.path).name for file in manifest.files} & inodes.keys()
    assert sum(file.num_superseded for file in manifest.files) == 0
    prepare(config.model_copy(update={"prepared": str(tmp_path / "at-once")}))
    assert read_content(tmp_path / "set") == read_content(tmp_path / "at-once")


def test_nothing_new(tmp_path: Path) -> None:
    config = data_config(tmp_path)
    write_day(tmp_path / "log", "day-0", [{"user": "u", "item": 1, "time": 1}])
    before = prepare(config)
    appended = append(config)
    assert (appended.manifest, appended.num_files, appended.num_events) == (before, 0, 0)
    # A new file without a single event is taken note of, and the content stays the same.
    write_day(tmp_path / "log", "day-1", [])
    appended = append(config)
    assert (appended.num_files, appended.num_events) == (1, 0)
    assert appended.manifest.content_hash == before.content_hash
    assert append(config).num_files == 0
    assert read_content(tmp_path / "set")["num_events"] == 1


def test_csv_and_bad_files(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log/1.csv").write_text("user,item,time\n7,1,5\n8,2,6\n")
    source = {"name": "csv", "path": str(tmp_path / "log")}
    config = DataConfig.model_validate(
        {"source": source, "prepared": str(tmp_path / "set"), "max_rejected_files": 1, "max_rejected_fraction": 0.5}
    )
    prepare(config)
    (tmp_path / "log/2.csv").write_text("user,item,time\n7,3,4\n9,2,6\n9,2\n")
    (tmp_path / "log/3.csv").write_text("user,thing,time\n7,3,4\n")
    assert append(config).num_events == 2
    content = read_content(tmp_path / "set")
    assert content["sequences"] == {7: [(3, 4, None), (1, 5, None)], 8: [(2, 6, None)], 9: [(2, 6, None)]}
    assert content["rejected_files"] == {("3.csv", "missing column")}
    assert content["rejected"] == {"wrong number of fields": 1}
    (tmp_path / "log/4.csv").write_text("user,item,time\nanna,3,4\n")
    with pytest.raises(DataError, match=r"int64 user ids and the new files have others; run .*--overwrite"):
        append(config)
    assert read_content(tmp_path / "set") == content


def test_training_and_evaluation_see_each_user_once(tmp_path: Path, make_config) -> None:
    rng = random.Random(8)
    config = data_config(tmp_path)
    write_day(tmp_path / "log", "day-0", random_rows(rng, 3_000, 300, 80, 0, 50))
    prepare(config)
    for day in (1, 2):
        write_day(tmp_path / "log", f"day-{day}", random_rows(rng, 60, 400, 90, 30, 60))
        manifest = append(config).manifest
    assert sum(file.num_superseded for file in manifest.files) > 10 and len(manifest.files) == 5
    check_every_user_once(tmp_path, make_config)


def test_row_groups_without_rows(tmp_path: Path, make_config) -> None:
    config = data_config(tmp_path, num_shards=1)
    rows = [{"user": f"u{n}", "item": n % 7, "time": t, "value": 1.0} for n in range(400) for t in range(4)]
    write_day(tmp_path / "log", "day-0", rows)
    path = prepare(config).files[0].path
    users = pq.read_table(tmp_path / "set/users.parquet")["user"].to_pylist()
    moved = read_row_group(tmp_path / "set", path, 1, ["user"])["user"].to_pylist()
    write_day(tmp_path / "log", "day-1", [{"user": users[user], "item": 3, "time": 9} for user in moved])
    append(config)
    assert [group.rows for group in load_manifest(tmp_path / "set").files[0].row_groups] == [64, 0, 64, 64, 64, 64, 16]
    check_every_user_once(tmp_path, make_config)


def check_every_user_once(tmp_path: Path, make_config: Callable[..., ExperimentConfig]) -> None:
    """An epoch trains each user's window once, and the test period asks for each user's last event once."""
    manifest = load_manifest(tmp_path / "set")
    experiment = make_config(tmp_path / "set", "sequence.max_length=6", "batch.tokens_per_step=240")
    numbers = {row["user"]: row["index"] for row in pq.read_table(tmp_path / "set/users.parquet").to_pylist()}
    items = {row["item"]: row["index"] for row in pq.read_table(tmp_path / "set/items.parquet").to_pylist()}
    histories = {
        numbers[user]: [items[item] for item, _, _ in events]
        for user, events in read_content(tmp_path / "set")["sequences"].items()
    }

    plan = make_plan(experiment)
    parts = experiment.batch.micro_batches_per_step
    place: dict[str, int] = {"start_step": 0, "end_step": plan.num_steps(1, None), "rank": 0, "workers": 1}
    trained: list[tuple[int, list[int]]] = []
    for _, batch in worker_batches(local_tables(plan, **place), **place, parts=parts):
        assert batch.users is not None
        for user, first, last in zip(batch.users, batch.offsets, batch.offsets[1:], strict=False):
            if batch.targets[first] >= 0:
                trained.append((int(user), [*batch.items[first:last].tolist(), int(batch.targets[last - 1])]))
    seen = {user: events[:-2] if len(events) >= 3 else events for user, events in histories.items()}
    assert sorted(trained) == sorted((user, events[-7:]) for user, events in seen.items() if len(events) >= 2)

    tested: list[tuple[int, int]] = []
    for rank in range(2):
        for batch in evaluation_batches(experiment, manifest, "test", rank=rank, world_size=2):
            tested += zip(batch.users.tolist(), batch.targets.tolist(), strict=True)
    assert sorted(tested) == sorted((user, events[-1]) for user, events in histories.items() if len(events) >= 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_user_events": 2}, "was prepared with other settings"),
        ({"max_rejected_fraction": 0.0}, "1 of 2 rows are bad"),
    ],
)
def test_settings_that_refuse(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    write_day(tmp_path / "log", "day-0", [{"user": "u", "item": 1, "time": 1}])
    prepare(data_config(tmp_path))
    write_day(tmp_path / "log", "day-1", [{"user": "u", "item": 1, "time": 1}, {"item": 1, "time": 1}])
    before = load_manifest(tmp_path / "set")
    with pytest.raises(DataError, match=words):
        append(data_config(tmp_path, **settings))
    assert load_manifest(tmp_path / "set") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "set"]


def test_what_could_differ_is_refused(tmp_path: Path) -> None:
    config = data_config(tmp_path, min_item_events=2)
    with pytest.raises(DataError, match="is not a prepared data set"):
        append(config)
    write_day(tmp_path / "log", "day-1", [{"user": "u", "item": 1, "time": t} for t in (1, 5)])
    prepare(config)
    with pytest.raises(DataError, match="an append needs both to be 1"):
        append(config)
    config = data_config(tmp_path, "other")
    prepare(config)
    write_day(tmp_path / "log", "day-0", [{"user": "u", "item": 2, "time": 5}])
    with pytest.raises(DataError, match="1 times a new event happens in the same second as a prepared one"):
        append(config)
    write_day(tmp_path / "log", "day-0", [{"user": "u", "item": 2, "time": 4}, {"user": "new", "item": 2, "time": 5}])
    assert append(config).num_events == 2
    write_day(tmp_path / "log", "day-0", [])
    with pytest.raises(DataError, match=r"day-0.parquet of .* bytes when it was prepared; put it back, or run"):
        append(config)
    (tmp_path / "log/day-0.parquet").unlink()
    with pytest.raises(DataError, match=r"day-0.parquet of .* is missing"):
        append(config)


def test_fractions_of_seconds_are_not_lost_in_silence(tmp_path: Path) -> None:
    def write(name: str, seconds: list[float]) -> None:
        micros = pa.array([int(second * 1e6) for second in seconds], pa.timestamp("us"))
        table = pa.table({"user": ["u"] * len(seconds), "item": range(len(seconds)), "time": micros})
        (tmp_path / "log").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"log/{name}.parquet")

    values = {"source": {"name": "parquet", "path": str(tmp_path / "log")}, "prepared": str(tmp_path / "set")}
    config = DataConfig.model_validate(values)
    write("1", [1.5, 2.75])
    prepare(config)
    write("2", [2.25])
    with pytest.raises(DataError, match="fractions of seconds"):
        append(config)
    write("2", [3.25])
    assert append(config).manifest.num_events == 3


@pytest.mark.parametrize("moment", ["save_manifest", "publish", "rename"])
def test_a_kill_leaves_the_old_set(tmp_path: Path, moment: str) -> None:
    config = data_config(tmp_path)
    write_day(tmp_path / "log", "day-0", [{"user": f"u{n % 9}", "item": n % 7, "time": n} for n in range(90)])
    prepare(config)
    before = read_content(tmp_path / "set")
    write_day(tmp_path / "log", "day-1", [{"user": f"u{n}", "item": n, "time": 99} for n in range(20)])
    program = (
        "import os, signal, sys; from pathlib import Path; from genrec.config import DataConfig\n"
        "from genrec.data import append\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"moment = {moment!r}\n"
        "rename = Path.rename\n"
        "def half(self, target):\n"
        "    if self.name == 'append': die()\n"
        "    return rename(self, target)\n"
        "if moment == 'rename': Path.rename = half\n"
        "else: setattr(append, moment, die)\n"
        f"append.append(DataConfig.model_validate_json({config.model_dump_json()!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=120, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert ensure_prepared(config).num_events == 90  # a reader finds the old set
    assert read_content(tmp_path / "set") == before
    assert append(config).num_events == 20
    prepare(config.model_copy(update={"prepared": str(tmp_path / "at-once")}))
    assert read_content(tmp_path / "set") == read_content(tmp_path / "at-once")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at-once", "log", "set"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"name": "unit", "data": data_config(tmp_path).model_dump(mode="json"), "model": {"name": "sasrec"}}
    values |= {"loss": {"name": "full-softmax"}, "train": {"max_epochs": 1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    write_day(tmp_path / "log", "day-0", [{"user": "u", "item": 1, "time": 1}])
    prepare(data_config(tmp_path))
    for rows, words in (
        ([], "0 new files, 0 new events"),
        ([{"user": "u", "item": 2, "time": 2}], "1 new files, 1 new"),
    ):
        if rows:
            write_day(tmp_path / "log", "day-1", rows)
        cli.prepare(tmp_path / "config.yaml", append=True)
        assert words in capsys.readouterr().out
    with pytest.raises(ConfigError, match="give one of them"):
        cli.prepare(tmp_path / "config.yaml", append=True, overwrite=True)
