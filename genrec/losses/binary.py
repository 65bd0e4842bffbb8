"""Binary cross entropy, plain and generalised (gBCE), over the target and sampled negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.losses.contrast import Contrast, Criterion
from genrec.losses.negatives import NegativeSampler
from genrec.losses.sampled import SampledLoss
from genrec.losses.temperature import Temperature


class BinaryCrossEntropy(SampledLoss):
    """-(beta * log sigmoid(own) + sum of log(1 - sigmoid(negative))) / (1 + num_negatives), summed over the rows.

    `calibration` t chooses beta between 1 (t = 0, plain BCE) and the share of the other items that are drawn as
    negatives (t = 1): the lower it is, the less a model that sees few negatives overestimates (Petrov and Macdonald,
    2023).
    """

    def __init__(
        self,
        temperature: Temperature,
        sampler: NegativeSampler,
        max_logits_bytes: int,
        *,
        calibration: float = 0.0,
        per_position: bool = False,
    ) -> None:
        super().__init__(temperature, sampler, max_logits_bytes, per_position=per_position)
        self.calibration = calibration

    def criterion(self, num_negatives: int, num_items: int) -> Criterion:
        """See `SampledLoss`."""
        return BinaryCriterion(beta(self.calibration, num_negatives, num_items), num_negatives)


def beta(calibration: float, num_negatives: int, num_items: int) -> float:
    """The power of the positive probability: alpha (t (1 - 1/alpha) + 1/alpha), alpha = num_negatives / (items - 1).

    Negatives are drawn with repetition; as many as there are other items, or more, count as all of them.
    """
    alpha = min(1.0, num_negatives / max(num_items - 1, 1))
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)


class BinaryCriterion:
    """(beta * softplus(-own) + sum of softplus(scores)) / (1 + num_negatives).

    -log(sigmoid(s) ** beta) is beta * softplus(-s), which is exact for every score: the published code gets there
    through log(1 / (p ** -beta - 1)) of a probability in fp64 that is clamped to 1e-10, and a sigmoid of that.
    """

    held_chunks = 2  # softplus and sigmoid of the scores

    def __init__(self, beta: float, num_negatives: int) -> None:
        self.beta = beta
        self.num_negatives = num_negatives

    def __call__(self, own: Tensor, scores: Tensor) -> Contrast:
        """See `Criterion`."""
        count = 1 + self.num_negatives
        of_negatives = F.softplus(scores, threshold=40).sum(dim=1, keepdim=True)
        losses = (self.beta * F.softplus(-own, threshold=40) + of_negatives) / count
        own_gradient = torch.sigmoid(-own).mul_(-self.beta / count)
        return Contrast(losses, own_gradient, scores.sigmoid_(), own.new_full((1, 1), count))
