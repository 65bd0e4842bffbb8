"""How often each item is a target of training, where that is not how often it is in the log: mixtures by shares."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import ExperimentConfig
from genrec.data.group_order import parts_of
from genrec.data.manifest import Manifest
from genrec.data.schema import ITEMS_FILE, PART_COUNTS
from genrec.data.stored_set import at_hand
from genrec.errors import DataError


def target_shares(config: ExperimentConfig, manifest: Manifest) -> npt.NDArray[np.float64] | None:
    """The share of every item among the targets, [num_items + 1]; None without `sequence.mix`.

    Each part's targets are as its own training events, and `sequence.mix` says how many of a step come from it.
    Raises DataError when the set does not know the counts of its parts.
    """
    if config.sequence.mix is None:
        return None
    path = at_hand(config.data.prepared) / ITEMS_FILE
    try:
        is_known = PART_COUNTS in pq.read_schema(path).names
        table = pq.read_table(path, columns=["index", PART_COUNTS] if is_known else ["index"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`.") from error
    if not is_known:
        raise DataError(
            f"{config.data.prepared} was prepared before mixtures knew the events of each part, and negatives from the "
            "batch cannot be corrected without them; run `genrec prepare CONFIG --overwrite`, or use "
            "loss.negatives: popularity."
        )
    parts = parts_of(manifest, config.sequence.mix)
    counts = table[PART_COUNTS].combine_chunks().flatten().to_numpy().reshape(len(table), len(parts))
    totals = counts.sum(axis=0)
    shares = np.array([part.share if total else 0.0 for part, total in zip(parts, totals, strict=True)])
    found = np.zeros(manifest.num_items + 1)
    found[table["index"].to_numpy()] = (counts / np.maximum(totals, 1)) @ (shares / shares.sum())
    return found
