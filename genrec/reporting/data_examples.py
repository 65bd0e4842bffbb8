"""A few users of a prepared data set as a person reads them: original ids, titles, and which role each event has."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.data.manifest import Manifest
from genrec.data.schema import ITEMS_FILE, USERS_FILE, Role
from genrec.data.sequence_files import read_row_group
from genrec.data.split import history_ends
from genrec.errors import DataError
from genrec.reporting.data_facts import RowGroupPlace

NUM_LAST_EVENTS = 8
LENGTH_QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, slots=True)
class ExampleEvent:
    """One event; `time_s` is None in a log without times, `title`, `item_type` and `action` are empty where unknown."""

    position: int
    time_s: int | None
    item: int | str
    title: str
    item_type: str
    action: str
    role: Role
    is_predicted: bool


@dataclass(frozen=True, slots=True)
class ExampleUser:
    """A user and the last events of its sequence."""

    user: int | str
    num_events: int
    events: tuple[ExampleEvent, ...]


@dataclass(frozen=True, slots=True)
class _Roles:
    """The role of each event of a sequence, and whether it is a target of validation or test."""

    names: list[Role]
    predicted: list[bool]


def example_users(folder: Path, manifest: Manifest, place: RowGroupPlace) -> tuple[ExampleUser, ...]:
    """A short, a middling and a long user of one row group; fewer when it has fewer users.

    Raises DataError when a file cannot be read.
    """
    table = read_row_group(folder, place.path, place.group, ["user", "length", "items", "times", "actions"])
    by_length = np.argsort(table["length"].to_numpy(), kind="stable")
    chosen = np.unique([round(fraction * (len(by_length) - 1)) for fraction in LENGTH_QUANTILES])
    rows = table.take(pa.array(by_length[chosen])).to_pylist()
    items = {int(item) for row in rows for item in row["items"][-NUM_LAST_EVENTS:]}
    known_items = _read_indices(folder / ITEMS_FILE, ["item", "title", "type"], items)
    known_users = _read_indices(folder / USERS_FILE, ["user"], {int(row["user"]) for row in rows})
    return tuple(
        ExampleUser(known_users[row["user"]]["user"], row["length"], _events(row, manifest, known_items))
        for row in rows
    )


def _events(
    row: dict[str, Any], manifest: Manifest, known_items: dict[int, dict[str, Any]]
) -> tuple[ExampleEvent, ...]:
    roles = _roles(manifest, np.array(row["times"], dtype=np.int64))
    action_names = ("", *manifest.actions)
    events = []
    for position in range(max(0, row["length"] - NUM_LAST_EVENTS), row["length"]):
        item = known_items[row["items"][position]]
        events.append(
            ExampleEvent(
                position=position + 1,
                time_s=row["times"][position] if manifest.has_times else None,
                item=item["item"],
                title=item["title"] or "",
                item_type=item["type"] or "",
                action=action_names[row["actions"][position]],
                role=roles.names[position],
                is_predicted=roles.predicted[position],
            )
        )
    return tuple(events)


def _roles(manifest: Manifest, times: npt.NDArray[np.int64]) -> _Roles:
    """Training sees what comes before its end, test what comes before its own: what lies between is validation's."""
    offsets = np.array([0, len(times)])
    roles: tuple[Role, ...] = ("train", "validation", "test")
    found = {role: history_ends(manifest.split, role, times, offsets) for role in roles}
    train_end, test_end = int(found["train"][0][0]), int(found["test"][0][0])
    test_end = max(train_end, test_end)
    names: list[Role] = [
        "train" if place < train_end else "validation" if place < test_end else "test" for place in range(len(times))
    ]
    predicted = {int(ends[0]) for role, (ends, evaluated) in found.items() if evaluated[0]}
    return _Roles(names, [place in predicted for place in range(len(times))])


def _read_indices(path: Path, columns: Sequence[str], indices: set[int]) -> dict[int, dict[str, Any]]:
    """The rows of an id table by index."""
    try:
        found = pq.read_table(path, columns=["index", *columns], filters=[("index", "in", sorted(indices))])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`.") from error
    rows = {row["index"]: row for row in found.to_pylist()}
    if missing := indices - rows.keys():
        raise DataError(
            f"{path} has no row for index {min(missing)}: the data set is damaged; "
            "run `genrec prepare CONFIG --overwrite`."
        )
    return rows
