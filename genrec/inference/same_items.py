"""Whether a prepared set is the one that a model was trained on, or has grown from it: indices must mean the same."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.data.schema import ITEMS_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import DataError
from genrec.inference.recommender import ids_by_index

WAY_OUT = "train on it, or restore the set that the model was trained on."


def check_same_items(item_ids: pa.Array, actions: Sequence[str], config: ExperimentConfig, manifest: Manifest) -> int:
    """How many items the set of `config` has got since a model was trained on `item_ids` and `actions`, in order.

    Raises DataError where an index means another item there, or an action that the model reads another action.
    """
    path = at_hand(config.data.prepared) / ITEMS_FILE
    try:
        there = ids_by_index(pq.read_table(path, columns=["index", "item"]))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`.") from error
    if not there.slice(0, len(item_ids)).equals(item_ids):
        raise DataError(
            f"The items of {config.data.prepared} are not those that the model was trained on: the set was prepared "
            f"again since; {WAY_OUT}"
        )
    reads_actions = "actions" in config.inputs.names or config.heads.action is not None
    if reads_actions and manifest.actions[: len(actions)] != tuple(actions):
        raise DataError(
            f"The actions of {config.data.prepared} are {', '.join(manifest.actions)}, and the model was trained on "
            f"{', '.join(actions)}: the set was prepared again since; {WAY_OUT}"
        )
    return len(there) - len(item_ids)
