"""A mixture holds every sequence of its sets, with one catalogue, and refuses sets that cannot be joined."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from genrec.config import DataConfig, GlobalTimeSplit, MixtureSource
from genrec.data.manifest import Manifest, load_manifest, save_manifest
from genrec.data.mixture import MixtureJob, stale_sets
from genrec.data.prepare import ensure_prepared
from genrec.data.schema import ITEMS_FILE, PART_COUNTS_FILE, USERS_FILE
from genrec.data.sequence_files import read_row_group
from genrec.errors import ConfigError, DataError
from genrec.stored_folder import StoredFolder

Write = Callable[..., Path]
MUSIC = [[1, 2, 3, 1], [2, 2, 3], [1, 2]]
TALK = [[4, 1, 5, 5, 5], [5, 4, 5]]


def config_of(folder: Path, **changes: Any) -> DataConfig:
    sets = {"talk": str(folder / "talk"), "music": str(folder / "music")}
    source = {"name": "mixture", "sets": sets}
    return DataConfig.model_validate({"source": source, "prepared": str(folder / "mixed"), **changes})


def mix(folder: Path, **changes: Any) -> tuple[Path, Manifest]:
    work = folder / "work"
    job = MixtureJob(config_of(folder, **changes), work)
    return job.finished, job.run(lambda function, tasks: map(function, tasks))


@pytest.fixture
def folder(tmp_path: Path, write_prepared: Write) -> Path:
    write_prepared(tmp_path / "music", MUSIC, num_files=2, rows_per_group=1)
    write_prepared(tmp_path / "talk", TALK, num_items=5)
    return tmp_path


def sequences_by_id(prepared: Path, manifest: Manifest) -> Iterator[tuple[Any, list[Any], list[int], list[str]]]:
    """(user id, item ids, times, action names) of every row, in file order."""
    items = pq.read_table(prepared / ITEMS_FILE).to_pydict()
    users = pq.read_table(prepared / USERS_FILE).to_pydict()
    id_of = dict(zip(items["index"], items["item"], strict=True))
    user_of = dict(zip(users["index"], users["user"], strict=True))
    for file in manifest.files:
        for group in range(len(file.row_groups)):
            columns = ["user", "length", "items", "times", "actions"]
            for row in read_row_group(prepared, file.path, group, columns).to_pylist():
                assert row["length"] == len(row["items"])
                names = [manifest.actions[code - 1] for code in row["actions"]]
                yield user_of[row["user"]], [id_of[i] for i in row["items"]], row["times"], names


def test_holds_every_sequence_of_its_sets(folder: Path) -> None:
    prepared, manifest = mix(folder)
    expected = [
        row for name in ("music", "talk") for row in sequences_by_id(folder / name, load_manifest(folder / name))
    ]
    assert list(sequences_by_id(prepared, manifest)) == expected
    assert [(part.name, part.num_files) for part in manifest.parts] == [("music", 2), ("talk", 1)]
    assert load_manifest(prepared) == manifest


def test_counts_add_up(folder: Path) -> None:
    prepared, manifest = mix(folder)
    parts = [load_manifest(folder / name) for name in ("music", "talk")]
    for name in ("num_users", "num_events", "num_train_events"):
        assert getattr(manifest, name) == sum(getattr(part, name) for part in parts)
    items = pq.read_table(prepared / ITEMS_FILE).to_pylist()
    assert {row["item"]: row["count"] for row in items} == {10: 4, 20: 4, 30: 2, 40: 2, 50: 5}
    assert [row["item"] for row in items] == [50, 10, 20, 30, 40]  # by falling count, then by id
    assert sum(row["train_count"] for row in items) == manifest.num_train_events
    counts = np.load(prepared / PART_COUNTS_FILE)
    assert counts.sum(axis=1).tolist() == [0, *(row["train_count"] for row in items)]
    assert counts[:, 0].tolist() == [0, 0, 2, 3, 0, 0]  # music's [1, 2], [2] and [1, 2]: three and more lose two


def test_adds_up_what_the_manifests_say(folder: Path) -> None:
    for name, histogram, rejected in (("music", {4: 2, 2: 1}, {"null user": 3}), ("talk", {8: 1, 4: 1}, {})):
        part = load_manifest(folder / name)
        update = {"length_histogram": histogram, "rejected": rejected, "time_range": (len(name), 10 * len(name))}
        save_manifest(folder / name, part.model_copy(update=update))
    _, manifest = mix(folder)
    assert manifest.length_histogram == {2: 1, 4: 3, 8: 1}
    assert manifest.rejected == {"null user": 3}
    assert manifest.time_range == (4, 50)


def test_users_of_both_sets_stay_apart(folder: Path) -> None:
    prepared, manifest = mix(folder)
    users = pq.read_table(prepared / USERS_FILE).to_pydict()
    assert users["index"] == list(range(manifest.num_users))
    assert users["user"] == [1000, 1001, 1002, 1000, 1001]


def test_actions_are_joined_by_name(folder: Path) -> None:
    talk = load_manifest(folder / "talk")
    save_manifest(folder / "talk", talk.model_copy(update={"actions": ("listen",)}))
    prepared, manifest = mix(folder)
    assert manifest.actions == ("play", "listen")
    assert {name for *_, names in sequences_by_id(prepared, manifest) for name in names} == {"play", "listen"}


def test_a_set_that_changed_is_noticed(folder: Path) -> None:
    _, manifest = mix(folder)
    source = config_of(folder).source
    assert isinstance(source, MixtureSource)
    assert stale_sets(source, manifest) == []
    talk = load_manifest(folder / "talk")
    save_manifest(folder / "talk", talk.model_copy(update={"content_hash": "another"}))
    assert stale_sets(source, manifest) == ["talk has changed since"]


def test_sets_on_storage_mix(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREC_COPIES", str(folder / "copies"))
    sets = {}
    for name in ("music", "talk"):
        sets[name] = (folder / "storage" / name).as_uri()
        stored = StoredFolder(sets[name])
        shutil.copytree(folder / name, stored.copy)
        stored.push()
        shutil.rmtree(stored.copy)
    expected = mix(folder)
    (folder / "again").mkdir()
    source = {"name": "mixture", "sets": sets}
    job = MixtureJob(DataConfig.model_validate({"source": source, "prepared": str(folder / "mixed")}), folder / "again")
    manifest = job.run(lambda function, tasks: map(function, tasks))
    assert manifest.content_hash == expected[1].content_hash


def test_refuses_another_split(folder: Path) -> None:
    split = {"name": "global-time", "validation_from": 1, "test_from": 2}
    with pytest.raises(DataError, match="prepare all of them with one split"):
        mix(folder, split=split)


def test_refuses_filters(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.min_item_events filters a log"):
        mix(folder, min_item_events=5)


def test_refuses_a_mixture_of_a_mixture(folder: Path) -> None:
    prepared, _ = mix(folder)
    (folder / "talk").rename(folder / "old")
    prepared.rename(folder / "talk")
    (folder / "work" / "items-0.npy").unlink()
    with pytest.raises(DataError, match="is a mixture itself"):
        MixtureJob(config_of(folder), folder / "again")


def test_refuses_ids_of_two_types(folder: Path, write_prepared: Write, tmp_path: Path) -> None:
    (folder / "talk").rename(folder / "old")
    write_prepared(tmp_path / "talk", TALK, string_ids=True)
    with pytest.raises(DataError, match="item ids of different types"):
        mix(folder)


def test_refuses_times_beside_none(folder: Path) -> None:
    talk = load_manifest(folder / "talk")
    save_manifest(folder / "talk", talk.model_copy(update={"has_times": not talk.has_times}))
    with pytest.raises(DataError, match="only one has event times"):
        mix(folder)


def test_global_time_sets_mix(tmp_path: Path, write_prepared: Write) -> None:
    split = GlobalTimeSplit(name="global-time", validation_from=2, test_from=3)
    write_prepared(tmp_path / "music", MUSIC, split=split)
    write_prepared(tmp_path / "talk", TALK, split=split)
    _, manifest = mix(tmp_path, split=split.model_dump())
    assert manifest.num_train_events == sum(
        load_manifest(tmp_path / name).num_train_events for name in ("music", "talk")
    )


def test_prepare_makes_a_mixture_that_goes_stale_with_its_sets(folder: Path) -> None:
    config = config_of(folder)
    manifest = ensure_prepared(config)
    expected = [
        row for name in ("music", "talk") for row in sequences_by_id(folder / name, load_manifest(folder / name))
    ]
    assert list(sequences_by_id(folder / "mixed", manifest)) == expected
    assert ensure_prepared(config) == manifest
    talk = load_manifest(folder / "talk")
    save_manifest(folder / "talk", talk.model_copy(update={"content_hash": "another"}))
    with pytest.raises(DataError, match=r"talk has changed since.*--overwrite"):
        ensure_prepared(config)
