"""A new run that begins with the weights of an export (`train.start_from`).

Rows of the item table go by the items' original ids, those of action and item types by their names, so the export may
come from another data set: what it does not know keeps its fresh initialisation. All other weights must be the same
in number and shape. The optimizer starts anew.
"""

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from genrec.config import ExperimentConfig
from genrec.data.item_types import type_names
from genrec.data.manifest import Manifest
from genrec.data.schema import ITEMS_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import DataError, RunError
from genrec.inference.export import Export, check_unseen, find_export, read_export
from genrec.inference.recommender import ids_by_index
from genrec.models.base import SequenceModel
from genrec.run_dir import config_differences
from genrec.semantic.run_map import semantic_ids_for

ITEM_TABLE = "item_table.weight"
ACTION_SCORES = "heads.action.scores."
_ALIKE = ("model", "inputs", "sequence.max_length")  # what weights mean depends on these
_NOT_ALIKE = ("model.dropout", "inputs.item_vectors.id_dropout")


class WarmStart(NamedTuple):
    """Which export a run began with, and how many rows of its item table it took."""

    source: str
    step: int
    matched_items: int
    num_items: int

    @property
    def sentence(self) -> str:
        """For the log."""
        return (
            f"Starting from the weights of {self.source} (step {self.step}): {self.matched_items:,} of "
            f"{self.num_items:,} items matched, {self.num_items - self.matched_items:,} are new."
        )


class _Rows(NamedTuple):
    """Rows of a table here, and those of the export's table that they take."""

    here: Tensor
    there: Tensor


def check_start(config: ExperimentConfig, manifest: Manifest) -> WarmStart | None:
    """What `warm_start` will do, before any worker starts; raises as it does."""
    if config.train.start_from is None:
        return None
    export = _read_fitting(config, config.train.start_from)
    return _summary(config, export, _tables(config, export, manifest))


def warm_start(model: SequenceModel, config: ExperimentConfig, manifest: Manifest) -> WarmStart | None:
    """Fills a model, not yet sharded, with the weights of `train.start_from`; None when that is not set.

    Raises DataError when there is no readable export, RunError when it is of another kind of model, knows none of the
    items, or holds weights that are not finite.
    """
    if config.train.start_from is None:
        return None
    export = _read_fitting(config, config.train.start_from)
    weights = dict(model.named_parameters())
    # What a loss learns (its temperature) and heads are no part of what encodes: where the export has none, they begin
    # as configured.
    weights = {n: w for n, w in weights.items() if n in export.state_dict or not n.startswith(("loss.", "heads."))}
    absent = sorted(weights.keys() - export.state_dict.keys())
    if absent:
        raise RunError(
            f"The export {config.train.start_from} has no weights {', '.join(absent[:3])}; it is of another model: "
            "export it again, or remove train.start_from."
        )
    tables = _tables(config, export, manifest)
    with torch.no_grad():
        for name, weight in weights.items():
            given = export.state_dict[name]
            _check_weight(name, weight, given, is_table=name in tables)
            if name in tables:
                rows = tables[name]
                weight[rows.here.to(weight.device)] = given[rows.there].to(weight)
            else:
                weight.copy_(given)
    return _summary(config, export, tables)


def _read_fitting(config: ExperimentConfig, source: str) -> Export:
    export = read_export(find_export(source))
    check_unseen(config, export, source, "train.start_from")
    differences = [
        text
        for text in config_differences(export.config, config)
        if text.startswith(tuple(f"{name}{end}" for name in _ALIKE for end in (":", ".")))
        and not text.startswith(_NOT_ALIKE)
    ]
    if differences:
        raise RunError(
            f"The export {source} is of another model; set these as it has them, or remove train.start_from. "
            "Differences (export -> now):\n  " + "\n  ".join(differences)
        )
    return export


def _check_weight(name: str, weight: Tensor, given: Tensor, *, is_table: bool) -> None:
    first = 1 if is_table else 0  # a table may have another number of rows
    if given.shape[first:] != weight.shape[first:] or given.dim() != weight.dim():
        raise RunError(
            f"The export's weight {name} has shape {list(given.shape)} and the model's has {list(weight.shape)}; it is "
            "of another model: remove train.start_from, or train the model that the export is of."
        )
    if not bool(given.isfinite().all()):
        raise RunError(
            f"The export's weight {name} holds values that are not finite: its training has diverged; start from "
            "another export."
        )


def _tables(config: ExperimentConfig, export: Export, manifest: Manifest) -> dict[str, _Rows]:
    """The weights whose rows go by names, each with its rows."""
    items = pq.read_table(at_hand(config.data.prepared) / ITEMS_FILE)
    tables = {ITEM_TABLE: _match(ids_by_index(export.items), ids_by_index(items))}
    _check_codes(config, export, tables[ITEM_TABLE], items.num_rows)
    if not len(tables[ITEM_TABLE].here) - 1:
        raise RunError(
            f"The export {config.train.start_from} knows none of the {items.num_rows:,} items of "
            f"{config.data.prepared} (ids there are {export.items.schema.field('item').type}, here "
            f"{items.schema.field('item').type}); remove train.start_from, or prepare the log with the same ids."
        )
    named: dict[str, Callable[[], _Rows]] = {
        "item_types": lambda: _match(type_names(export.items), type_names(items)),
        "actions": lambda: _match(_action_names(config, export), pa.array(manifest.actions, pa.string())),
    }
    table_of = {"item_types": "item_type", "actions": "action"}
    for name, rows in named.items():
        if name in config.inputs.names:
            tables |= {
                weight: rows() for weight in export.state_dict if weight.endswith(f"tables.{table_of[name]}.weight")
            }
    if config.heads.action is not None and any(name.startswith(ACTION_SCORES) for name in export.state_dict):
        codes = named["actions"]()
        tables |= {name: codes for name in export.state_dict if name.startswith(ACTION_SCORES)}
    return tables


def _check_codes(config: ExperimentConfig, export: Export, rows: _Rows, num_items: int) -> None:
    """Raises RunError unless both maps, where there are maps, say the same of the items that both know."""
    here, there = semantic_ids_for(config, num_items), export.semantic_ids
    if here is None or there is None:
        return
    alike = here.sizes == there.sizes and bool((here.codes[rows.here] == there.codes[rows.there]).all())
    if not alike:
        raise RunError(
            f"The export {config.train.start_from} writes other codes for the same items than semantic_ids.path has; "
            "name the map that it was trained with, or that map extended by new items, or remove train.start_from."
        )


def _match(there: pa.Array, here: pa.Array) -> _Rows:
    """Rows with the same name; name i has row i + 1, and row 0, for none, is always the same."""
    if there.type != here.type:
        return _Rows(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    places = pc.index_in(here, value_set=there)
    known = places.is_valid().to_numpy(zero_copy_only=False)
    numbers = places.drop_null().to_numpy(zero_copy_only=False)
    zero = torch.zeros(1, dtype=torch.int64)
    return _Rows(
        torch.cat([zero, torch.from_numpy(known).nonzero().squeeze(1) + 1]),
        torch.cat([zero, torch.from_numpy(numbers.astype("int64")) + 1]),
    )


def _action_names(config: ExperimentConfig, export: Export) -> pa.Array:
    if "actions" not in export.info:
        raise DataError(
            f"The export {config.train.start_from} does not name its actions; export it again with "
            "`genrec checkpoints RUN --export STEP`."
        )
    return pa.array(export.info["actions"], pa.string())


def _summary(config: ExperimentConfig, export: Export, tables: dict[str, _Rows]) -> WarmStart:
    here = tables[ITEM_TABLE].here
    num_items = pq.read_metadata(at_hand(config.data.prepared) / ITEMS_FILE).num_rows
    return WarmStart(str(config.train.start_from), export.info["step"], len(here) - 1, num_items)
