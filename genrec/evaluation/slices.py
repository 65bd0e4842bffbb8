"""Metrics by kind of user and of target: where a model is good, and where it is not. Everything is a count.

    history_length  events before the target, by powers of two: 1, 2-3, 4-7, ...
    popularity      the target's events in training: items by falling count are cut where a fifth, two fifths, ... of
                    all training events are reached, items of one count are never parted; named by the counts in it
    item_type       the target's type, where the item table has types
    cold            whether the target occurs in training at all; those that do not, by whether they have a vector,
                    where the set has item vectors

A kind of slices that puts all users into one slice says nothing and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from genrec.data.item_types import item_type_codes
from genrec.data.item_vectors import has_vector
from genrec.data.schema import ITEMS_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import DataError
from genrec.evaluation.rank_counts import metric_values, places_of, standard_errors
from genrec.evaluation.workers import Workers

IntArray = npt.NDArray[np.int64]

NUM_POPULARITY_SLICES = 5
NUM_LENGTH_SLICES = 40  # a history of 2^40 events would be needed to leave them


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """What is known of every item by item index, [num_items + 1]; index 0, padding, has nothing.

    Type codes are indices of `type_names`, whose first stands for items without a type. `has_vector` is None where the
    set has no item vectors.
    """

    train_counts: IntArray
    types: npt.NDArray[np.uint8]
    type_names: tuple[str, ...]
    has_vector: npt.NDArray[np.bool_] | None = None

    @property
    def cold(self) -> tuple[IntArray, list[str]]:
        """The slice of every item by whether it occurs in training, [num_items + 1], and the slices' names."""
        is_cold = (self.train_counts == 0).astype(np.int64)
        if self.has_vector is None:
            return is_cold, ["in training", "not in training"]
        names = ["in training", "not in training, with a vector", "not in training, without a vector"]
        return is_cold * np.where(self.has_vector, 1, 2), names


def read_item_facts(prepared: str | Path) -> ItemFacts:
    """The facts of a prepared set's items; raises DataError when its item table cannot be read."""
    path = at_hand(prepared) / ITEMS_FILE
    try:
        table = pq.read_table(path, columns=["index", "train_count", "type"]).sort_by("index")
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`.") from error
    counts = np.concatenate([[0], table["train_count"].to_numpy()]).astype(np.int64)
    names = table["type"].combine_chunks().dictionary_encode().dictionary.to_pylist()
    return ItemFacts(counts, item_type_codes(table), ("no type", *names), has_vector(prepared))


class SliceSums:
    """How many users of each slice have which rank; the same for any number of workers."""

    def __init__(self, facts: ItemFacts, max_k: int) -> None:
        self._facts = facts
        self._max_k = max_k
        self._popularity, popularity_names = popularity_slices(facts.train_counts)
        self._cold, cold_names = facts.cold
        self._names = {
            "history_length": [_length_name(power) for power in range(NUM_LENGTH_SLICES)],
            "popularity": popularity_names,
            "item_type": list(facts.type_names),
            "cold": cold_names,
        }
        self._counts = {name: np.zeros((len(slices), max_k + 1), np.int64) for name, slices in self._names.items()}

    def add(self, ranks: IntArray, targets: IntArray, history_lengths: IntArray) -> None:
        """Counts these users; all [num_users]."""
        places = places_of(ranks, self._max_k)
        slices = {
            "history_length": np.log2(np.maximum(history_lengths, 1)).astype(np.int64),
            "popularity": self._popularity[targets],
            "item_type": self._facts.types[targets].astype(np.int64),
            "cold": self._cold[targets],
        }
        for name, rows in slices.items():
            counts = self._counts[name]
            counts += np.bincount(rows * (self._max_k + 1) + places, minlength=counts.size).reshape(counts.shape)

    def results(self, ks: Sequence[int], workers: Workers, device: torch.device) -> dict[str, dict[str, Any]]:
        """By kind and slice `num_users`, `metrics` and `standard_errors`, over all workers, which call it together."""
        found = {}
        for name, slices in self._names.items():
            counts = workers.sum(torch.from_numpy(self._counts[name].copy()).to(device)).cpu().numpy()
            present = [index for index in range(len(slices)) if counts[index].any()]
            if len(present) > 1:
                found[name] = {slices[index]: _result(counts[index], ks) for index in present}
        return found


def _result(counts: IntArray, ks: Sequence[int]) -> dict[str, Any]:
    return {
        "num_users": int(counts.sum()),
        "metrics": metric_values(counts, ks),
        "standard_errors": standard_errors(counts, ks),
    }


def _length_name(power: int) -> str:
    first, last = 2**power, 2 ** (power + 1) - 1
    return str(first) if first == last else f"{first}-{last}"


def popularity_slices(train_counts: IntArray) -> tuple[IntArray, list[str]]:
    """The slice of every item by item index, [num_items + 1], and the slices' names, the most popular one first.

    An item is in the slice in which the more popular items' share of all training events lies, in fifths. Items that do
    not occur in training are a slice of their own, the last.
    """
    different, place, num_items = np.unique(train_counts[1:], return_inverse=True, return_counts=True)
    events = different * num_items
    more_popular = events[::-1].cumsum()[::-1] - events  # of each count, events of items with higher ones
    fifths = NUM_POPULARITY_SLICES * more_popular // max(int(events.sum()), 1)
    fifths[different == 0] = NUM_POPULARITY_SLICES
    names = []
    for fifth in range(NUM_POPULARITY_SLICES + 1):
        held = different[fifths == fifth]
        names.append("none" if len(held) == 0 else str(held[0]) if len(held) == 1 else f"{held[0]}-{held[-1]}")
    return np.concatenate([[NUM_POPULARITY_SLICES], fifths[place]]), names
