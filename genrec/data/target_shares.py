"""How often each item is a target of training, where that is not how often it is in the log: mixtures by shares."""

import logging

import numpy as np
import numpy.typing as npt

from genrec.config import ExperimentConfig
from genrec.data.group_order import parts_of
from genrec.data.manifest import Manifest
from genrec.data.schema import PART_COUNTS_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import DataError

logger = logging.getLogger(__name__)


def target_shares(config: ExperimentConfig, manifest: Manifest) -> npt.NDArray[np.float64] | None:
    """The share of every item among the targets, [num_items + 1]; None where it is that of the training events.

    Each part's targets are as its own training events, and `sequence.mix` says how many of a step come from it. A
    mixture that was prepared before it knew the events of its parts is warned about. Raises DataError when they cannot
    be read.
    """
    if config.sequence.mix is None:
        return None
    path = at_hand(config.data.prepared) / PART_COUNTS_FILE
    if not path.is_file():
        logger.warning(
            "%s does not exist: the mixture was prepared by an earlier version, so logQ corrects negatives from the "
            "batch as if sequence.mix were left out; run `genrec prepare CONFIG --overwrite` to mend it.",
            path,
        )
        return None
    parts = parts_of(manifest, config.sequence.mix)
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; run `genrec prepare CONFIG --overwrite`.") from error
    if counts.shape != (manifest.num_items + 1, len(parts)):
        raise DataError(
            f"{path} has the shape {list(counts.shape)} and the set {manifest.num_items} items in {len(parts)} parts; "
            "run `genrec prepare CONFIG --overwrite`."
        )
    totals = counts.sum(axis=0)
    shares = np.array([part.share if total else 0.0 for part, total in zip(parts, totals, strict=True)])
    found: npt.NDArray[np.float64] = (counts / np.maximum(totals, 1)) @ (shares / shares.sum())
    return found
