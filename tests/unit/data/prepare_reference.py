"""What preparing a log means, in plain Python and as slowly as it likes, and a reader of prepared sets."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from genrec.data.manifest import load_manifest
from genrec.data.schema import ITEMS_FILE, SEQUENCES_DIR, USERS_FILE

Id = int | str


class Event(NamedTuple):
    user: Id
    item: Id
    time: int = 0
    action: str | None = None
    value: float | None = None


@dataclass
class Prepared:
    """A prepared set with original ids: what each user did, and the item table (item, count, train_count) by index."""

    sequences: dict[Id, list[tuple[Id, int, str | None]]]
    items: list[tuple[Id, int, int]]
    order: list[Id]


def reference(
    events: list[Event], *, min_value: float | None = None, min_user_events: int = 1, min_item_events: int = 1
) -> Prepared:
    """The prepared set of a log of good rows, leave-one-out."""
    kept = [e for e in events if min_value is None or (e.value is not None and e.value >= min_value)]
    while True:
        users, items = Counter(e.user for e in kept), Counter(e.item for e in kept)
        left = [e for e in kept if users[e.user] >= min_user_events and items[e.item] >= min_item_events]
        if len(left) == len(kept):
            break
        kept = left
    sequences: dict[Id, list[tuple[Id, int, str | None]]] = {}
    for event in sorted(kept, key=lambda e: e.time):  # stable, as Python's sort is
        sequences.setdefault(event.user, []).append((event.item, event.time, event.action))
    trained: Counter[Id] = Counter()
    for sequence in sequences.values():
        seen = sequence[:-2] if len(sequence) >= 3 else sequence
        trained.update(item for item, _, _ in seen)
    table = [(item, count, trained[item]) for item, count in Counter(e.item for e in kept).items()]
    table.sort(key=lambda row: (-row[1], row[0]))
    return Prepared(sequences, table, [])


def read_prepared(folder: Path) -> Prepared:
    """The prepared set in `folder`, after checking that its parts agree with each other."""
    manifest = load_manifest(folder)
    items = pq.read_table(folder / ITEMS_FILE).to_pylist()
    assert [row["index"] for row in items] == list(range(1, manifest.num_items + 1))
    users = pq.read_table(folder / USERS_FILE).to_pylist()
    assert [row["index"] for row in users] == list(range(manifest.num_users))
    names = (None, *manifest.actions)
    sequences: dict[Id, list[tuple[Id, int, str | None]]] = {}
    next_user = num_events = 0
    for file in manifest.files:
        for row in pq.read_table(folder / file.path).to_pylist():
            assert row["user"] == next_user
            assert row["length"] == len(row["items"]) == len(row["times"]) == len(row["actions"])
            assert row["times"] == sorted(row["times"])
            sequences[users[next_user]["user"]] = [
                (items[index - 1]["item"], time, names[action])
                for index, time, action in zip(row["items"], row["times"], row["actions"], strict=True)
            ]
            next_user += 1
            num_events += row["length"]
    assert {path.name for path in (folder / SEQUENCES_DIR).iterdir()} == {Path(f.path).name for f in manifest.files}
    assert next_user == manifest.num_users and num_events == manifest.num_events
    assert sum(manifest.length_histogram.values()) == manifest.num_users
    assert sum(row["train_count"] for row in items) == manifest.num_train_events
    table = [(row["item"], row["count"], row["train_count"]) for row in items]
    return Prepared(sequences, table, [user["user"] for user in users])
