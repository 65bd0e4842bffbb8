"""What training, evaluation and recommendation ask of a model (contract 5)."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from genrec.data.batch import Batch
from genrec.errors import ConfigError
from genrec.models.heads import Heads
from genrec.models.item_table import ItemTable
from genrec.semantic.ids import SemanticIds


@dataclass(frozen=True)  # no slots: ZeRO-3 looks for tensors in the `vars` of what a module returns
class LossSum:
    """A summed loss, weighted where targets have weights, and how many targets it sums over.

    `parts` are the losses of the tasks, where there are several, each without its factor, for the log.
    """

    loss_sum: Tensor
    num_targets: int
    parts: dict[str, Tensor] = field(default_factory=dict)


class Loss(Protocol):
    """A training objective over hidden states and the item table."""

    def __call__(
        self,
        hidden: Tensor,
        targets: Tensor,
        item_table: ItemTable,
        pool: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Summed loss of `hidden` [num_targets, dim] against `targets` [num_targets].

        `pool` [num_pool] are targets of the whole step, for a loss that compares with them (`Batch.negatives`);
        `weights` [num_targets] are factors of the targets' losses, where they do not count alike.
        """
        ...


class SequenceModel(nn.Module):
    """A network over jagged histories: subclasses define `encode`, and say which times it reads.

    The item table owns every use of its weight (ZeRO-3 gathers a weight only inside its own module).
    """

    uses_query_time: bool = False
    """Whether `encode` reads `target_times`; printed in every protocol card."""
    reads_times: bool = False
    """Whether `encode` reads `times`: such a model cannot answer without them."""
    generates: bool = False
    """Whether the model writes items: it then has no score for each of them, and `recommend` is what is evaluated."""
    semantic_ids: SemanticIds | None = None
    """The map that it writes codes of."""

    def __init__(self, item_table: ItemTable, loss: Loss) -> None:
        super().__init__()
        self.item_table = item_table
        self.loss = loss
        self.heads: Heads | None = None

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states [num_tokens, dim]: position i sees events up to i of its own sequence, nothing else."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> LossSum:
        """The summed loss over the batch's targets (targets of -1 do not count), and over the tasks of its heads."""
        encoded = self.encode(batch)
        hidden, targets, weights = encoded, batch.targets, batch.target_weights
        positions = (targets >= 0).nonzero().squeeze(1)
        if positions.shape[0] < batch.num_tokens:
            hidden, targets = hidden.index_select(0, positions), targets.index_select(0, positions)
            weights = None if weights is None else weights.index_select(0, positions)
        loss_sum = self.loss(hidden, targets, self.item_table, batch.negatives, weights)
        if self.heads is None:
            return LossSum(loss_sum, positions.shape[0])
        of_tasks = self.heads.losses(encoded, batch, self.item_table)
        total = loss_sum + sum(self.heads.weights[name] * loss for name, loss in of_tasks.items())
        parts = {name: loss.detach() for name, loss in {"item": loss_sum, **of_tasks}.items()}
        return LossSum(total, positions.shape[0], parts)

    def last_hidden(self, batch: Batch) -> Tensor:
        """Hidden state at each sequence's last event, [num_sequences, dim]."""
        return self.encode(batch)[batch.last_positions]

    def recommend(
        self,
        batch: Batch,
        k: int,
        exclude: tuple[Tensor, Tensor] | None = None,
        *,
        allowed: Tensor | None = None,
        max_per_prefix: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k best items [num_sequences, k] and their scores [num_sequences, k], best first.

        `exclude` is (sequence index, item index) of the pairs that must not come back, usually each user's history;
        `allowed` bool [num_items + 1] says which items may come back at all. `max_per_prefix` is for models that write
        codes: how many items of a list may share their first code. Where fewer than k are left, scores are -inf.
        Raises ConfigError when `k` is larger than the catalogue, and on `max_per_prefix` where there are no codes.
        """
        self.check_k(k)
        self.check_max_per_prefix(max_per_prefix)
        scores = self.item_table.scores(self.last_hidden(batch))  # [num_sequences, num_items + 1]
        scores[:, 0] = -float("inf")
        if exclude is not None:
            scores[exclude] = -float("inf")
        if allowed is not None:
            scores.masked_fill_(~allowed, -float("inf"))
        best = scores.topk(k, dim=1)
        return best.indices, best.values

    def check_max_per_prefix(self, max_per_prefix: int | None) -> None:
        """Raises ConfigError when a list cannot be bound so: None is no bound."""
        if max_per_prefix is not None:
            raise ConfigError("This model writes no codes that items could share; leave max_per_prefix out.")

    def check_k(self, k: int) -> None:
        """Raises ConfigError when there are fewer than `k` items."""
        if k > self.item_table.num_items:
            raise ConfigError(
                f"k ({k}) is larger than the catalogue of {self.item_table.num_items} items; ask for fewer items"
            )
