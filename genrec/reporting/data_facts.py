"""What is in a prepared data set, counted: the numbers behind `genrec inspect`. Nothing here formats or draws.

Memory is bounded whatever the set's size: one row group at a time, and one number for each item. Lengths and items are
counted whole; times and actions come from a sample of row groups where the set is large (a row group is a random
handful of users).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.data.manifest import Manifest
from genrec.data.schema import ITEMS_FILE
from genrec.data.sequence_files import read_row_group
from genrec.errors import DataError

IntArray = npt.NDArray[np.int64]

SAMPLE_EVENTS = 4_000_000
MAX_CURVE_POINTS = 120
MAX_PERIODS = 366
HOUR_S, DAY_S = 3_600, 86_400
MAX_SPAN_OF_HOURS_S = 3 * DAY_S  # a shorter log is counted by the hour
ITEMS_PER_READ = 65_536


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """Users whose number of events is in (upper / 2, upper], and the events that they have."""

    upper: int
    num_users: int
    num_events: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Events per user. A quantile q is the smallest length that at least q of the users do not exceed."""

    mean: float
    median: int
    p90: int
    p99: int
    longest: int
    buckets: tuple[LengthBucket, ...]


@dataclass(frozen=True, slots=True)
class Popularity:
    """How training events spread over the items, the most frequent first.

    Curves: item `ranks[i]` has `shares[i]` of the training events, and the first `ranks[i]` items have `cumulative[i]`;
    items that are never trained are not on them.
    """

    num_items: int
    num_never_trained: int
    top_1_percent_share: float
    top_10_percent_share: float
    gini: float
    ranks: tuple[int, ...]
    shares: tuple[float, ...]
    cumulative: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ItemType:
    """Items of one type, and the training events on them; the name is empty where the item table gives none."""

    name: str
    num_items: int
    num_train_events: int


@dataclass(frozen=True, slots=True)
class Action:
    """One action and how often it occurs in the sample; the name is empty where the log gives none."""

    name: str
    num_events: int


@dataclass(frozen=True, slots=True)
class Periods:
    """Events over time: `events_per_unit` of each stretch of `units_per_period` days (or hours) from `first_s` on.

    Counts of a sample are scaled up to the whole set. The last stretch may be shorter; its mean knows that.
    """

    unit: str
    unit_s: int
    units_per_period: int
    first_s: int
    num_units: int
    events_per_unit: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What times, actions and examples were read from."""

    num_row_groups: int
    of_row_groups: int
    num_events: int
    of_events: int

    @property
    def is_whole(self) -> bool:
        """Whether the sample is the whole set."""
        return self.num_row_groups == self.of_row_groups


@dataclass(frozen=True, slots=True)
class RowGroupPlace:
    """Where a row group is, and its events."""

    path: str
    group: int
    num_events: int


def row_groups_of(manifest: Manifest) -> list[RowGroupPlace]:
    """All row groups that hold a user, in file order."""
    return [
        RowGroupPlace(file.path, index, group.events)
        for file in manifest.files
        for index, group in enumerate(file.row_groups)
        if group.rows
    ]


def sample_row_groups(manifest: Manifest) -> list[RowGroupPlace]:
    """Row groups in a seeded order, as many as `SAMPLE_EVENTS` events take: all of them in a small set."""
    places = row_groups_of(manifest)
    order = np.random.default_rng(0).permutation(len(places)).tolist()
    chosen: list[RowGroupPlace] = []
    num_events = 0
    for index in order:
        if num_events >= SAMPLE_EVENTS:
            break
        chosen.append(places[index])
        num_events += places[index].num_events
    return chosen


def count_lengths(folder: Path, manifest: Manifest) -> Lengths:
    """The lengths of all users, from the `length` column; raises DataError when a file cannot be read."""
    users_of_length = np.zeros(1, dtype=np.int64)
    for place in row_groups_of(manifest):
        lengths = read_row_group(folder, place.path, place.group, ["length"])["length"].to_numpy()
        counted = np.bincount(lengths, minlength=len(users_of_length))
        counted[: len(users_of_length)] += users_of_length
        users_of_length = counted
    length = np.arange(len(users_of_length))
    events_of_length = length * users_of_length
    num_users = max(int(users_of_length.sum()), 1)
    median, p90, p99 = (_quantile(users_of_length, fraction) for fraction in (0.5, 0.9, 0.99))
    uppers = [1]
    while uppers[-1] < length[-1]:
        uppers.append(2 * uppers[-1])
    slices = [slice(upper // 2 + 1, upper + 1) for upper in uppers]
    buckets = [
        LengthBucket(upper, int(users_of_length[part].sum()), int(events_of_length[part].sum()))
        for upper, part in zip(uppers, slices, strict=True)
    ]
    first = next((index for index, bucket in enumerate(buckets) if bucket.num_users), 0)
    return Lengths(
        mean=int(events_of_length.sum()) / num_users,
        median=median,
        p90=p90,
        p99=p99,
        longest=int(length[-1]),
        buckets=tuple(buckets[first:]),
    )


def _quantile(users_of_length: IntArray, fraction: float) -> int:
    up_to = np.cumsum(users_of_length)
    return int(np.searchsorted(up_to, fraction * up_to[-1]))


def count_items(folder: Path) -> tuple[Popularity, tuple[ItemType, ...]]:
    """Popularity and the item types, most items first; no types when the item table names none.

    Raises DataError when the item table cannot be read.
    """
    counts: list[IntArray] = []
    items_by_type: Counter[str] = Counter()
    events_by_type: Counter[str] = Counter()
    for batch in _item_batches(folder):
        train_count = batch["train_count"].to_numpy().astype(np.int64)
        counts.append(train_count)
        summed = pa.table({"type": batch["type"], "train_count": train_count}).group_by("type")
        for row in summed.aggregate([("train_count", "count"), ("train_count", "sum")]).to_pylist():
            items_by_type[row["type"] or ""] += row["train_count_count"]
            events_by_type[row["type"] or ""] += row["train_count_sum"]
    types = tuple(ItemType(name, count, events_by_type[name]) for name, count in items_by_type.most_common())
    named = any(kind.name for kind in types)
    return popularity_of(np.concatenate(counts)), types if named else ()


def _item_batches(folder: Path) -> Iterator[pa.RecordBatch]:
    path = folder / ITEMS_FILE
    try:
        with pq.ParquetFile(path) as parquet:
            yield from parquet.iter_batches(ITEMS_PER_READ, columns=["train_count", "type"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`.") from error


def popularity_of(counts: IntArray) -> Popularity:
    """The popularity of items with `counts` [num_items] training events each.

    The Gini coefficient is 0 when all items are equally frequent and near 1 when one item has nearly all events. The
    top 1% are the most frequent items, rounded up to a whole number of them.
    """
    rising = np.sort(counts)
    num_items, total = len(rising), max(int(rising.sum()), 1)
    falling = rising[::-1]
    num_trained = int((rising > 0).sum())
    place = np.arange(1, num_items + 1, dtype=np.float64)
    gini = 2 * float(place @ rising) / (num_items * total) - (num_items + 1) / num_items
    ranks = np.unique(np.geomspace(1, max(num_trained, 1), MAX_CURVE_POINTS).round().astype(np.int64))
    ranks = ranks[ranks <= num_trained]
    return Popularity(
        num_items=num_items,
        num_never_trained=num_items - num_trained,
        top_1_percent_share=float(falling[: -(-num_items // 100)].sum()) / total,
        top_10_percent_share=float(falling[: -(-num_items // 10)].sum()) / total,
        gini=gini if num_trained else 0.0,
        ranks=tuple(ranks.tolist()),
        shares=tuple((falling[ranks - 1] / total).tolist()),
        cumulative=tuple((np.cumsum(falling)[ranks - 1] / total).tolist()),
    )


def count_events(folder: Path, manifest: Manifest) -> tuple[Sample, tuple[Action, ...], Periods | None]:
    """Actions and events over time in the sample; no actions or no periods where the log has none.

    Raises DataError when a file cannot be read.
    """
    places = sample_row_groups(manifest)
    sample = Sample(
        len(places), len(row_groups_of(manifest)), sum(place.num_events for place in places), manifest.num_events
    )
    periods = _empty_periods(manifest.time_range) if manifest.has_times else None
    columns = [*(["times"] if periods else []), *(["actions"] if manifest.actions else [])]
    num_periods = -(-periods.num_units // periods.units_per_period) if periods else 0
    in_period, by_action = np.zeros(num_periods, dtype=np.int64), np.zeros(256, dtype=np.int64)
    for place in places if columns else []:
        table = read_row_group(folder, place.path, place.group, columns)
        if manifest.actions:
            by_action += np.bincount(_flat(table, "actions"), minlength=256)
        if periods:
            period = (_flat(table, "times") - periods.first_s) // (periods.unit_s * periods.units_per_period)
            in_period += np.bincount(period, minlength=num_periods)
    names = ("", *manifest.actions)
    actions = tuple(Action(name, int(by_action[code])) for code, name in enumerate(names) if name or by_action[code])
    if periods:
        periods = _filled(periods, in_period, sample.of_events / max(sample.num_events, 1))
    return sample, tuple(sorted(actions, key=lambda action: -action.num_events)) if manifest.actions else (), periods


def _flat(table: pa.Table, column: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table[column].combine_chunks().flatten().to_numpy()
    return values


def _empty_periods(time_range: tuple[int, int]) -> Periods:
    first, last = time_range
    unit, unit_s = ("hour", HOUR_S) if last - first < MAX_SPAN_OF_HOURS_S else ("day", DAY_S)
    first_unit = first // unit_s
    num_units = last // unit_s - first_unit + 1
    return Periods(unit, unit_s, -(-num_units // MAX_PERIODS), first_unit * unit_s, num_units, ())


def _filled(periods: Periods, events: IntArray, scale: float) -> Periods:
    units = np.full(len(events), periods.units_per_period)
    units[-1] = periods.num_units - (len(events) - 1) * periods.units_per_period
    return Periods(
        periods.unit,
        periods.unit_s,
        periods.units_per_period,
        periods.first_s,
        periods.num_units,
        tuple((scale * events / units).tolist()),
    )
