"""`Recommender`: from a user's history, in original item ids, to the k best items of the whole catalogue."""

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from genrec.config import ExperimentConfig
from genrec.data.batch import Batch
from genrec.data.item_types import of_types
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
from genrec.inference.load import load_model
from genrec.inference.serving import AS_TRAINED, ServedModel
from genrec.models.base import SequenceModel

ItemId = int | str


class Recommendation(NamedTuple):
    """One item, by its original id, and the model's score of it; scores compare within one user only."""

    item: ItemId
    score: float


class Expectation(NamedTuple):
    """What the model's heads expect of an item if it comes next; None where the model has no such head."""

    item: ItemId
    actions: dict[str, float] | None
    """Probability of each action by its name; they add up to 1."""
    seconds: float | None
    """Seconds that it will be played."""


class HeadAnswers(NamedTuple):
    """`Expectation` as arrays: `shares` [num_users, k, num_actions], `seconds` [num_users, k]."""

    shares: npt.NDArray[np.float32] | None
    seconds: npt.NDArray[np.float32] | None


class Recommender:
    """A trained model with the item ids it was trained on."""

    def __init__(
        self, model: SequenceModel, config: ExperimentConfig, items: pa.Table, actions: Sequence[str] = ()
    ) -> None:
        """Wraps a model; `items` is the table of `items.parquet`, `actions` the names of the log's actions 1, 2, ..."""
        self.config = config
        self.actions = tuple(actions)
        self.num_items: int = items.num_rows
        self._model = model.eval()
        self.item_ids: pa.Array = ids_by_index(items)
        """Original item ids [num_items]; place i holds item index i + 1."""
        self._index_of: dict[ItemId, int] = {}
        self._items = items
        self._allowed: torch.Tensor | None = None
        self._max_per_prefix: int | None = None

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device | str = "cpu", served: ServedModel = AS_TRAINED
    ) -> "Recommender":
        """The best model of a run directory or of an export folder, as `served` asks for it.

        Raises DataError when there is none, ConfigError when it cannot do what is asked.
        """
        loaded = load_model(path, served)
        return cls(loaded.model.to(device), loaded.config, loaded.items, loaded.actions)

    def to(self, device: torch.device | str) -> "Recommender":
        """This recommender, with its model moved to another device."""
        self._model.to(device)
        return self

    def limited(self, item_types: Sequence[str] = (), max_per_prefix: int | None = None) -> "Recommender":
        """A recommender with the same model that answers with items of these types alone (none named: of all).

        `max_per_prefix`, for models that write codes: how many items of a list may share their first code. Raises
        ConfigError on types that the items do not have and on a bound that the model has no use for, DataError when
        the items have no types at all.
        """
        self._model.check_max_per_prefix(max_per_prefix)
        other = copy(self)
        other._max_per_prefix = max_per_prefix
        other._allowed = torch.from_numpy(of_types(self._items, item_types)) if item_types else None
        return other

    def recommend(
        self,
        history: Sequence[ItemId],
        k: int = 10,
        *,
        times: Sequence[int] | None = None,
        actions: Sequence[str | None] | None = None,
        now: int | None = None,
        exclude_seen: bool = True,
        skip_unknown: bool = False,
    ) -> list[Recommendation]:
        """The k best next items for one history, best first; fewer when fewer are left after `exclude_seen`.

        `history` is original item ids, oldest first, `times` their seconds and `actions` what was done with them, by
        name (None: not known); `now` is the second that is asked about (None: right after the last event). Raises
        DataError on an empty history, on ids that the model does not know (unless `skip_unknown`) and on times and
        actions that do not fit or are missing, ConfigError when k exceeds the catalogue.
        """
        return self.recommend_many(
            [history],
            k,
            times=None if times is None else [times],
            actions=None if actions is None else [actions],
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
        actions: Sequence[Sequence[str | None]] | None = None,
        now: int | None = None,
        exclude_seen: bool = True,
        skip_unknown: bool = False,
    ) -> list[list[Recommendation]]:
        """`recommend` for many histories at once; one list a history, in their order."""
        check_k(k, self.num_items)
        columns = self._columns(histories, times, actions, skip_unknown)
        query_times = self.query_times(columns, now, has_times=times is not None)
        indices, scores = self.top_k(columns, k, query_times, exclude_seen=exclude_seen)
        rows = []
        for row_indices, row_scores in zip(indices, scores, strict=True):
            kept = row_scores > -np.inf
            ids = self.item_ids.take(pa.array(row_indices[kept] - 1)).to_pylist()
            rows.append([Recommendation(*pair) for pair in zip(ids, row_scores[kept].tolist(), strict=True)])
        return rows

    def expect(
        self,
        history: Sequence[ItemId],
        items: Sequence[ItemId],
        *,
        times: Sequence[int] | None = None,
        actions: Sequence[str | None] | None = None,
        now: int | None = None,
        skip_unknown: bool = False,
    ) -> list[Expectation]:
        """What the heads expect of each of `items`, were it next in this history; arguments as in `recommend`.

        Raises ConfigError for a model without heads, and DataError as `recommend` does.
        """
        if not self.has_heads:
            raise ConfigError("This model has no heads; train one with heads.action or heads.dwell.")
        asked = self._indices_of(items, "items")
        columns = self._columns(
            [history], None if times is None else [times], None if actions is None else [actions], skip_unknown
        )
        query_times = self.query_times(columns, now, has_times=times is not None)
        shares, seconds = self.head_answers(columns, np.array([asked], dtype=np.int64), query_times)
        return [
            Expectation(
                item,
                None if shares is None else dict(zip(self.actions, shares[0, place].tolist(), strict=True)),
                None if seconds is None else float(seconds[0, place]),
            )
            for place, item in enumerate(items)
        ]

    @property
    def has_heads(self) -> bool:
        """Whether the model says more than which item comes next."""
        return self._model.heads is not None

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
        indices = np.zeros((len(histories.lengths), k), dtype=np.int64)
        scores = np.zeros((len(histories.lengths), k), dtype=np.float32)
        allowed = None if self._allowed is None else self._allowed.to(self.device)
        for rows, part, batch in self._batches(histories, query_times):
            seen = seen_pairs(part) if exclude_seen else None
            exclude = None if seen is None else (seen[0].to(self.device), seen[1].to(self.device))
            best, best_scores = self._model.recommend(
                batch, k, exclude, allowed=allowed, max_per_prefix=self._max_per_prefix
            )
            indices[rows] = best.cpu().numpy()
            scores[rows] = best_scores.float().cpu().numpy()
        if np.isnan(scores).any():
            raise RunError(
                "The model scores items as NaN; its training has diverged: train again with a lower optimizer.lr."
            )
        return indices, scores

    @torch.inference_mode()
    def head_answers(self, histories: Histories, items: IntArray, query_times: IntArray) -> HeadAnswers:
        """What the heads say of the item indices [num_users, k], each were it next; a place that holds 0 means nothing.

        The model must have heads; histories hold at least one event each.
        """
        heads = self._model.heads
        assert heads is not None
        num_users, k = items.shape
        shares = np.zeros((num_users, k, len(self.actions)), dtype=np.float32)
        seconds = np.zeros((num_users, k), dtype=np.float32)
        for rows, _, batch in self._batches(histories, query_times):
            hidden = self._model.last_hidden(batch)[: len(rows)].repeat_interleave(k, dim=0)
            asked = torch.from_numpy(items[rows].reshape(-1)).to(self.device)
            x = heads.inputs(hidden, asked, self._model.item_table)
            if heads.action is not None:
                shares[rows] = heads.action(x).exp().view(len(rows), k, -1).float().cpu().numpy()
            if heads.dwell is not None:
                seconds[rows] = torch.expm1(heads.dwell(x)).clamp(min=0).view(len(rows), k).float().cpu().numpy()
        return HeadAnswers(None if heads.action is None else shares, None if heads.dwell is None else seconds)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self._model.parameters()).device

    def _batches(self, histories: Histories, query_times: IntArray) -> Iterator[tuple[IntArray, Histories, Batch]]:
        """The users in batches: which they are, their histories, and their windows on the model's device."""
        lengths = np.minimum(histories.lengths, self.config.sequence.max_length)
        users_per_batch = users_per_batch_of(self.config, self.num_items)
        borders = batch_borders(lengths, users_per_batch, max_tokens_of(self.config))
        for first, last in pairwise(borders.tolist()):
            rows = np.arange(first, last)
            part = histories.stretch(rows, np.zeros_like(rows), histories.lengths[rows])
            yield rows, part, window_batch(part, self.config.sequence.max_length, query_times[rows]).to(self.device)

    def _columns(
        self,
        histories: Sequence[Sequence[ItemId]],
        times: Sequence[Sequence[int]] | None,
        actions: Sequence[Sequence[str | None]] | None,
        skip_unknown: bool,
    ) -> Histories:
        if times is None and (self._model.reads_times or self._model.uses_query_time):
            raise DataError(
                "This model reads when things happened, and no times were given; pass times=[...], the second of "
                "each event of the history."
            )
        if actions is None and self.config.inputs.actions:
            raise DataError(
                "This model reads what was done with each item, and no actions were given; pass actions=[...], one of "
                f"{', '.join(self.actions)} for each event of the history, None where it is not known."
            )
        for name, given in (("times", times), ("actions", actions)):
            if given is not None and len(given) != len(histories):
                raise DataError(f"{len(histories)} histories have {len(given)} lists of {name}; give one for each.")
        parts: list[IntArray] = []
        for row, history in enumerate(histories):
            row_times = range(len(history)) if times is None else times[row]
            codes = [0] * len(history) if actions is None else self._codes(row, actions[row])
            events = self._known_events(row, history, (row_times, codes), skip_unknown)
            if times is None:  # positions are counted again where unknown items were skipped
                events[:, 1] = np.arange(len(events))
            parts.append(events)
        lengths = [len(events) for events in parts]
        items, seconds, known_codes = np.concatenate([np.zeros((0, 3), dtype=np.int64), *parts]).T
        return Histories(
            users=np.full(len(histories), -1, dtype=np.int64),
            items=items,
            times=seconds,
            actions=known_codes,
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        )

    def _codes(self, row: int, actions: Sequence[str | None]) -> list[int]:
        """Codes of actions by name; 0 is not known."""
        codes = {None: 0} | {name: code for code, name in enumerate(self.actions, start=1)}
        unknown = next((action for action in actions if action not in codes), None)
        if unknown is not None:
            raise DataError(
                f"History {row} has the action {unknown!r}, which the log did not have; give one of "
                f"{', '.join(self.actions) or 'none'}, or None."
            )
        return [codes[action] for action in actions]

    def _indices_of(self, items: Sequence[ItemId], what: str) -> list[int]:
        """Item indices of original ids that must be known."""
        unknown = [item for item in items if item not in self._index]
        if unknown:
            raise DataError(
                f"The {what} hold {len(unknown)} that the model does not know, {unknown[0]!r} for one; correct them."
            )
        return [self._index[item] for item in items]

    @property
    def _index(self) -> dict[ItemId, int]:
        if not self._index_of:
            self._index_of = {item: index for index, item in enumerate(self.item_ids.to_pylist(), start=1)}
        return self._index_of

    def _known_events(
        self,
        row: int,
        history: Sequence[ItemId],
        told: tuple[Sequence[int], Sequence[int]],
        skip_unknown: bool,
    ) -> IntArray:
        """[num_known, 3]: item index, second and action code of events whose item is known; `told` has those."""
        times, codes = told
        for name, given in (("time", times), ("action", codes)):
            if len(given) != len(history):
                raise DataError(
                    f"History {row} has {len(history)} items and {len(given)} {name}s; give one {name} for each item."
                )
        if any(later < earlier for earlier, later in pairwise(times)):
            raise DataError(f"The times of history {row} go backwards; give its events oldest first.")
        unknown = [item for item in history if item not in self._index]
        if unknown and not skip_unknown:
            raise DataError(
                f"History {row} has {len(unknown)} items that the model does not know, {unknown[0]!r} for one (its ids "
                f"are {self.item_ids.type} like {self.item_ids[0].as_py()!r}); correct them or pass skip_unknown=True."
            )
        events = zip(history, times, codes, strict=True)
        known = [(self._index[item], second, code) for item, second, code in events if item in self._index]
        if not known:
            raise DataError(
                f"History {row} has no item that the model knows; give at least one, or recommend what is popular."
            )
        return np.array(known, dtype=np.int64)


def check_k(k: int, num_items: int) -> None:
    """Raises ConfigError when k items cannot be recommended, whoever asks."""
    if not 1 <= k <= num_items:
        raise ConfigError(f"k ({k}) must be between 1 and the catalogue's {num_items} items; choose one there.")


def ids_by_index(items: pa.Table) -> pa.Array:
    """Original ids [num_items] of an item table; place i holds item index i + 1."""
    ordered = items.sort_by("index")
    if not np.array_equal(ordered["index"].to_numpy(), np.arange(1, items.num_rows + 1)):
        raise DataError(
            f"The item table must number its {items.num_rows} items 1 to {items.num_rows}; prepare the data set again."
        )
    return pa.concat_arrays(ordered["item"].chunks)
