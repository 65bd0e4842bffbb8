"""Losses over the target and sampled negatives, and the first of them: cross entropy."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from genrec.losses.contrast import Contrast, Criterion, Targets, own_contrast, shared_contrast
from genrec.losses.full import as_column, at_least_fp32
from genrec.losses.negatives import Negatives, NegativeSampler
from genrec.losses.temperature import Temperature
from genrec.models.item_table import ItemTable


class SampledLoss(nn.Module, ABC):
    """A loss of the target and negatives, which all rows share unless each has its own (`per_position`).

    A negative that is a row's own target does not count for that row. A subclass says what is made of the scores.
    """

    def __init__(
        self, temperature: Temperature, sampler: NegativeSampler, max_logits_bytes: int, *, per_position: bool = False
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.sampler = sampler
        self.max_logits_bytes = max_logits_bytes
        self.per_position = per_position

    @abstractmethod
    def criterion(self, num_negatives: int, num_items: int) -> Criterion:
        """The loss of the scores of a row's target and `num_negatives` of `num_items` items."""

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        item_table: ItemTable,
        pool: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Summed loss of `hidden` [num_targets, dim] against `targets` [num_targets]; the others as in `Loss`."""
        if self.per_position:
            negatives = self.sampler.per_position(targets.shape[0], item_table, targets.device)
        else:
            negatives = self.sampler.shared(item_table, pool, targets.device)
        return self.with_negatives(hidden, targets, negatives, item_table, weights)

    def with_negatives(
        self,
        hidden: Tensor,
        targets: Tensor,
        negatives: Negatives,
        item_table: ItemTable,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The same for given negatives."""
        rows = self.temperature(item_table.normalized(at_least_fp32(hidden)))
        criterion = self.criterion(negatives.ids.shape[-1], item_table.num_train_items)
        contrast = own_contrast if self.per_position else shared_contrast
        weighted = Targets(targets, as_column(weights, rows))
        return contrast(rows, weighted, negatives, item_table, criterion, self.max_logits_bytes)


class SampledSoftmax(SampledLoss):
    """-log softmax over the target and negatives, summed over the rows."""

    def criterion(self, num_negatives: int, num_items: int) -> Criterion:
        """See `SampledLoss`."""
        return SoftmaxCriterion()


class SoftmaxCriterion:
    """log(exp(own) + sum of exp(scores)) - own."""

    held_chunks = 1

    def __call__(self, own: Tensor, scores: Tensor) -> Contrast:
        """See `Criterion`."""
        peak = torch.maximum(scores.amax(dim=1, keepdim=True), own)
        exponentials = scores.sub_(peak).exp_()
        own_exponential = torch.exp(own - peak)
        total = exponentials.sum(dim=1, keepdim=True) + own_exponential
        return Contrast(total.log() + peak - own, own_exponential / total - 1, exponentials, total)
