"""`Recommender`: from a user's history, in original item ids, to the k best items of the whole catalogue."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from genrec.config import ExperimentConfig
from genrec.data.item_types import item_type_codes
from genrec.errors import ConfigError, DataError, RunError
from genrec.evaluation.users import (
    Histories,
    IntArray,
    batch_borders,
    max_tokens_of,
    seen_pairs,
    users_per_batch_of,
    window_batch,
)
from genrec.inference.export import find_export, read_export
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.models.fused_table import settle

ItemId = int | str


class Recommendation(NamedTuple):
    """One item, by its original id, and the model's score of it; scores compare within one user only."""

    item: ItemId
    score: float


class Recommender:
    """A trained model with the item ids it was trained on."""

    def __init__(self, model: SequenceModel, config: ExperimentConfig, items: pa.Table) -> None:
        """Wraps a model; `items` is the table of `items.parquet`."""
        self.config = config
        self.num_items: int = items.num_rows
        self._model = model.eval()
        self.item_ids: pa.Array = ids_by_index(items)
        """Original item ids [num_items]; place i holds item index i + 1."""
        self._index_of: dict[ItemId, int] = {}

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "Recommender":
        """The best model of a run directory or of an export folder; raises DataError when there is none."""
        folder = find_export(path)
        export = read_export(folder)
        model = build_model(
            export.config, export.items.num_rows, item_type_codes(export.items), item_vectors=export.vectors
        )
        try:
            model.load_state_dict(export.state_dict)
        except RuntimeError as error:
            raise DataError(
                f"The weights in {folder} are not of the model in its config ({str(error).splitlines()[0]}); "
                "train again, or copy the whole folder."
            ) from error
        if any(bool(weight.isnan().any()) for weight in export.state_dict.values() if weight.is_floating_point()):
            raise DataError(
                f"The weights in {folder} hold NaN: training has diverged; train again with a lower optimizer.lr."
            )
        settle(model)
        return cls(model.to(device), export.config, export.items)

    def to(self, device: torch.device | str) -> "Recommender":
        """This recommender, with its model moved to another device."""
        self._model.to(device)
        return self

    def recommend(
        self,
        history: Sequence[ItemId],
        k: int = 10,
        *,
        times: Sequence[int] | None = None,
        now: int | None = None,
        exclude_seen: bool = True,
        skip_unknown: bool = False,
    ) -> list[Recommendation]:
        """The k best next items for one history, best first; fewer when fewer are left after `exclude_seen`.

        `history` is original item ids, oldest first, and `times` their seconds; `now` is the second that is asked
        about (None: right after the last event). Raises DataError on an empty history, on ids that the model does
        not know (unless `skip_unknown`) and on times that do not fit, ConfigError when k exceeds the catalogue.
        """
        return self.recommend_many(
            [history],
            k,
            times=None if times is None else [times],
            now=now,
            exclude_seen=exclude_seen,
            skip_unknown=skip_unknown,
        )[0]

    def recommend_many(
        self,
        histories: Sequence[Sequence[ItemId]],
        k: int = 10,
        *,
        times: Sequence[Sequence[int]] | None = None,
        now: int | None = None,
        exclude_seen: bool = True,
        skip_unknown: bool = False,
    ) -> list[list[Recommendation]]:
        """`recommend` for many histories at once; one list a history, in their order."""
        check_k(k, self.num_items)
        if times is None and (self._model.reads_times or self._model.uses_query_time):
            raise DataError(
                "This model reads when things happened, and no times were given; pass times=[...], the second of "
                "each event of the history."
            )
        columns = self._columns(histories, times, skip_unknown)
        query_times = self.query_times(columns, now, has_times=times is not None)
        indices, scores = self.top_k(columns, k, query_times, exclude_seen=exclude_seen)
        rows = []
        for row_indices, row_scores in zip(indices, scores, strict=True):
            kept = row_scores > -np.inf
            ids = self.item_ids.take(pa.array(row_indices[kept] - 1)).to_pylist()
            rows.append([Recommendation(*pair) for pair in zip(ids, row_scores[kept].tolist(), strict=True)])
        return rows

    def query_times(self, histories: Histories, now: int | None, *, has_times: bool) -> IntArray:
        """The second that each user's next event is asked for, [num_users]: `now`, or right after the last event.

        Without real times an event's time is its position, and the next event has the next position.
        """
        last = histories.times[histories.offsets[1:] - 1]
        if not has_times:
            return last + 1
        if now is None:
            return last
        if len(last) and now < last.max():
            raise ConfigError(
                f"now ({now}) is before the newest event of a history ({last.max()}); give a later second."
            )
        return np.full_like(last, now)

    @torch.inference_mode()
    def top_k(
        self, histories: Histories, k: int, query_times: IntArray, *, exclude_seen: bool
    ) -> tuple[IntArray, npt.NDArray[np.float32]]:
        """Item indices and scores [num_users, k] of the best k, best first; a score of -inf marks a place left empty.

        Histories hold at least one event each.
        """
        device = next(self._model.parameters()).device
        lengths = np.minimum(histories.lengths, self.config.sequence.max_length)
        users_per_batch = users_per_batch_of(self.config, self.num_items)
        borders = batch_borders(lengths, users_per_batch, max_tokens_of(self.config))
        indices = np.zeros((len(lengths), k), dtype=np.int64)
        scores = np.zeros((len(lengths), k), dtype=np.float32)
        for first, last in pairwise(borders.tolist()):
            rows = np.arange(first, last)
            part = histories.stretch(rows, np.zeros_like(rows), histories.lengths[rows])
            batch = window_batch(part, self.config.sequence.max_length, query_times[rows]).to(device)
            seen = seen_pairs(part) if exclude_seen else None
            exclude = None if seen is None else (seen[0].to(device), seen[1].to(device))
            best, best_scores = self._model.recommend(batch, k, exclude)
            indices[rows] = best.cpu().numpy()
            scores[rows] = best_scores.float().cpu().numpy()
        if np.isnan(scores).any():
            raise RunError(
                "The model scores items as NaN; its training has diverged: train again with a lower optimizer.lr."
            )
        return indices, scores

    def _columns(
        self, histories: Sequence[Sequence[ItemId]], times: Sequence[Sequence[int]] | None, skip_unknown: bool
    ) -> Histories:
        if times is not None and len(times) != len(histories):
            raise DataError(f"{len(histories)} histories have {len(times)} lists of times; give one for each.")
        items: list[int] = []
        seconds: list[int] = []
        offsets = [0]
        for row, history in enumerate(histories):
            row_times = range(len(history)) if times is None else times[row]
            pairs = self._known_events(row, history, row_times, skip_unknown)
            items += [item for item, _ in pairs]
            # Positions are counted again where unknown items were skipped.
            seconds += [second for _, second in pairs] if times is not None else range(len(pairs))
            offsets.append(len(items))
        num_events = len(items)
        return Histories(
            users=np.arange(len(histories), dtype=np.int64),
            items=np.array(items, dtype=np.int64),
            times=np.array(seconds, dtype=np.int64),
            actions=np.zeros(num_events, dtype=np.int64),
            offsets=np.array(offsets, dtype=np.int64),
        )

    def _known_events(
        self, row: int, history: Sequence[ItemId], times: Sequence[int], skip_unknown: bool
    ) -> list[tuple[int, int]]:
        """(item index, second) of the events whose item is known."""
        if not self._index_of:
            self._index_of = {item: index for index, item in enumerate(self.item_ids.to_pylist(), start=1)}
        if len(times) != len(history):
            raise DataError(
                f"History {row} has {len(history)} items and {len(times)} times; give one time for each item."
            )
        if any(later < earlier for earlier, later in pairwise(times)):
            raise DataError(f"The times of history {row} go backwards; give its events oldest first.")
        unknown = [item for item in history if item not in self._index_of]
        if unknown and not skip_unknown:
            raise DataError(
                f"History {row} has {len(unknown)} items that the model does not know, {unknown[0]!r} for one (its ids "
                f"are {self.item_ids.type} like {self.item_ids[0].as_py()!r}); correct them or pass skip_unknown=True."
            )
        known = [(self._index_of[i], t) for i, t in zip(history, times, strict=True) if i in self._index_of]
        if not known:
            raise DataError(
                f"History {row} has no item that the model knows; give at least one, or recommend what is popular."
            )
        return known


def check_k(k: int, num_items: int) -> None:
    """Raises ConfigError when k items cannot be recommended, whoever asks."""
    if not 1 <= k <= num_items:
        raise ConfigError(f"k ({k}) must be between 1 and the catalogue's {num_items} items; choose one there.")


def ids_by_index(items: pa.Table) -> pa.Array:
    """Original ids [num_items] of an item table; place i holds item index i + 1."""
    ordered = items.sort_by("index")
    if ordered["index"].to_pylist() != list(range(1, items.num_rows + 1)):
        raise DataError(
            f"The item table must number its {items.num_rows} items 1 to {items.num_rows}; prepare the data set again."
        )
    return pa.concat_arrays(ordered["item"].chunks)
