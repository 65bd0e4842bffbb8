"""Ranks from the list of the best items, for models that write items and do not score all of them.

The rank of a target is its place in the list of the k best, k the largest cut-off, or k + 1 where it is not in the
list: metrics up to k ask for no more. The list is what `recommend` gives, so what is measured is what is served.
"""

import torch

from genrec.errors import RunError
from genrec.evaluation.ranking import Ranked
from genrec.evaluation.users import EvaluationBatch
from genrec.models.base import SequenceModel


def list_items(model: SequenceModel, users: EvaluationBatch, k: int, device: torch.device) -> Ranked:
    """Ranks of these users' targets in the lists of the k best items, and the lists, best first.

    Seen items are not listed, except for a target that has been seen before, as everywhere in evaluation.
    Raises RunError when a score is not a number.
    """
    num_users = users.targets.shape[0]  # may be 0: all workers pass through the model together
    repeated = users.seen_items == users.targets[users.seen_rows]
    exclude = (users.seen_rows[~repeated].to(device), users.seen_items[~repeated].to(device))
    items, scores = (found[:num_users] for found in model.recommend(users.batch.to(device), k, exclude))
    if bool(scores.isnan().any()):
        raise RunError(
            "The model scores codes as NaN, so ranks mean nothing: training has diverged; lower optimizer.lr or set "
            "optimizer.gradient_clipping, and resume from an earlier checkpoint."
        )
    is_target = items == users.targets.to(device).unsqueeze(1)
    places = torch.where(is_target.any(dim=1), is_target.int().argmax(dim=1), k)
    return Ranked(places + 1, items)
