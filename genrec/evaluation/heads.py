"""How good a model's heads are: on the held-out event of every user, whatever its action, given its item.

action_accuracy      share of the events whose action is the likeliest one
action_log_loss      mean of -log p(action), in nats
action_majority      share of the most frequent action: the accuracy of a guess that knows nothing
action_base_log_loss the log loss of the shares themselves, the entropy of the actions
dwell_mae_log        mean of |predicted - true| of log(1 + seconds)
dwell_base_mae_log   the same for the median of all, whatever the event; from a histogram, within 1/128
"""

import torch
from torch import Tensor

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest
from genrec.data.schema import Role
from genrec.evaluation.users import EvaluationBatch, evaluation_batches, in_step
from genrec.evaluation.workers import Workers
from genrec.models.base import SequenceModel
from genrec.models.event_features import NUM_CODES
from genrec.models.heads import Heads


def evaluate_heads(
    model: SequenceModel,
    config: ExperimentConfig,
    manifest: Manifest,
    role: Role,
    workers: Workers,
    *,
    max_users: int | None = None,
) -> dict[str, float]:
    """What the module says, by name, over the users of `role`; empty for a model without heads.

    All workers call it together, inside `evaluating(model)`. It encodes the users once more: `sequence.target_actions`
    chooses who is ranked, and must not choose what the heads are asked.
    """
    if model.heads is None:
        return {}
    everything = config.model_copy(
        update={
            "sequence": config.sequence.model_copy(update={"target_actions": None}),
            "evaluation": config.evaluation.model_copy(update={"filter_seen": False}),
        }
    )
    device = next(model.parameters()).device
    batches = evaluation_batches(
        everything, manifest, role, rank=workers.rank, world_size=workers.count, max_users=max_users
    )
    actions, dwells = _ActionSums(device), _DwellSums(device)
    for users in in_step(batches, workers.all_reduce, device):
        hidden = model.last_hidden(users.batch.to(device))[: users.targets.shape[0]]
        x = model.heads.inputs(hidden, users.targets.to(device), model.item_table)
        actions.add(model.heads, x, users)
        dwells.add(model.heads, x, users)
    found = actions.results(workers) if model.heads.action is not None else {}
    return found | (dwells.results(workers) if model.heads.dwell is not None else {})


class _ActionSums:
    """Correct answers, summed log loss, and how often each action is the right one."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2 + NUM_CODES, dtype=torch.float64, device=device)

    def add(self, heads: Heads, x: Tensor, users: EvaluationBatch) -> None:
        """Adds users whose action is known."""
        if heads.action is None or users.target_actions is None:
            return
        codes = users.target_actions.to(x.device)
        log_shares = heads.action(x)[codes > 0]  # for all rows: under ZeRO-3 every worker has to come here
        codes = codes[codes > 0]
        self.sums[0] += (log_shares.argmax(dim=1) + 1 == codes).sum()
        self.sums[1] -= log_shares.gather(1, codes.unsqueeze(1) - 1).sum()
        self.sums[2:] += torch.bincount(codes, minlength=NUM_CODES)

    def results(self, workers: Workers) -> dict[str, float]:
        """The metrics over all workers; empty where no action is known."""
        correct, log_loss, *counts = workers.sum(self.sums).tolist()
        total = sum(counts)
        if not total:
            return {}
        shares = torch.tensor([count / total for count in counts if count], dtype=torch.float64)
        return {
            "action_accuracy": correct / total,
            "action_log_loss": log_loss / total,
            "action_majority": max(counts) / total,
            "action_base_log_loss": float(-(shares * shares.log()).sum()),
        }


class _DwellSums:
    """Summed errors, and a histogram of the true log(1 + seconds)."""

    BINS_PER_UNIT = 128
    NUM_BINS = 20 * BINS_PER_UNIT  # up to 15 years

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(1 + self.NUM_BINS, dtype=torch.float64, device=device)

    def add(self, heads: Heads, x: Tensor, users: EvaluationBatch) -> None:
        """Adds users whose value is known."""
        if heads.dwell is None or users.target_values is None:
            return
        values = users.target_values.to(x.device)
        known = values.isfinite()
        predicted = heads.dwell(x)[known]  # for all rows: under ZeRO-3 every worker has to come here
        wanted = torch.log1p(values[known].double())
        self.sums[0] += (predicted - wanted).abs().sum()
        bins = (wanted * self.BINS_PER_UNIT).long().clamp(max=self.NUM_BINS - 1)
        self.sums[1:] += torch.bincount(bins, minlength=self.NUM_BINS)

    def results(self, workers: Workers) -> dict[str, float]:
        """The metrics over all workers; empty where no value is known."""
        sums = workers.sum(self.sums).cpu()
        error, counts = float(sums[0]), sums[1:]
        total = float(counts.sum())
        if not total:
            return {}
        centers = (torch.arange(self.NUM_BINS, dtype=torch.float64) + 0.5) / self.BINS_PER_UNIT
        median = centers[int(torch.searchsorted(counts.cumsum(0), total / 2))]
        base = float((counts * (centers - median).abs()).sum()) / total
        return {"dwell_mae_log": error / total, "dwell_base_mae_log": base}
