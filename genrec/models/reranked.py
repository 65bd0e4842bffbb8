"""A model that writes codes proposes, a model that scores items orders: one model to whoever asks for items.

Both have the same catalogue and are trained apart. genrec/semantic/rerank.py has the rule.
"""

from torch import Tensor

from genrec.data.batch import Batch
from genrec.models.base import SequenceModel
from genrec.models.code_model import CodeModel
from genrec.semantic.rerank import rerank


class Reranked(SequenceModel):
    """The `num_candidates` items that `proposer` finds, in the order of the scores of `ranker`; it is not trained.

    `windows` are the events that proposer and ranker read of a history, at most. `cold_items` int64 [num_cold] are
    scored for everybody, proposed or not.
    """

    generates = True
    cold_items: Tensor

    def __init__(
        self,
        proposer: CodeModel,
        ranker: SequenceModel,
        num_candidates: int,
        windows: tuple[int, int],
        cold_items: Tensor,
    ) -> None:
        super().__init__(ranker.item_table, ranker.loss)
        self.proposer, self.ranker = proposer, ranker
        self.num_candidates = num_candidates
        self.windows = windows
        self.uses_query_time = proposer.uses_query_time or ranker.uses_query_time
        self.reads_times = proposer.reads_times or ranker.reads_times
        self.semantic_ids = proposer.semantic_ids
        self.register_buffer("cold_items", cold_items, persistent=False)

    def check_max_per_prefix(self, max_per_prefix: int | None) -> None:
        """Raises ConfigError when the model that finds items cannot bound a list so."""
        self.proposer.check_max_per_prefix(max_per_prefix)

    def recommend(
        self,
        batch: Batch,
        k: int,
        exclude: tuple[Tensor, Tensor] | None = None,
        *,
        allowed: Tensor | None = None,
        max_per_prefix: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `SequenceModel`; the scores are the ranker's. Without items and NaN where one of the models is broken."""
        self.check_k(k)
        num_candidates = min(max(k, self.num_candidates), self.item_table.num_items)
        found, log_probabilities = self.proposer.recommend(
            batch.newest(self.windows[0]), num_candidates, exclude, allowed=allowed, max_per_prefix=max_per_prefix
        )
        hidden = self.ranker.last_hidden(batch.newest(self.windows[1])).float()
        cold = self.cold_items if allowed is None else self.cold_items[allowed[self.cold_items]]
        table = self.item_table
        items, scores = rerank(
            table.normalized(hidden),
            found,
            lambda some: table.normalized(table.embed(some).float()),
            k,
            cold_items=cold,
            exclude=exclude,
        )
        is_broken = (log_probabilities.isnan().any(dim=1) | hidden.isnan().any(dim=1)).unsqueeze(1)
        return items.masked_fill(is_broken, 0), scores.masked_fill(is_broken, float("nan"))
