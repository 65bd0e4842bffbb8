"""Ranks from lists: places, what is beyond, and targets that have been seen before."""

import pytest
import torch
from torch import Tensor

from genrec.config import ExperimentConfig, config_from_dict
from genrec.data.batch import Batch, batch_from_arrays
from genrec.data.manifest import load_manifest
from genrec.evaluation.evaluate import evaluate
from genrec.evaluation.listing import list_items
from genrec.evaluation.metrics import ranks_of
from genrec.evaluation.protocol import protocol_card, protocol_differences
from genrec.evaluation.users import EvaluationBatch, evaluation_batches
from genrec.models.base import SequenceModel
from genrec.models.build import build_model
from genrec.models.code_model import CodeModel
from genrec.models.item_table import NoItemTable
from genrec.semantic.run_map import made_up_ids

NUM_ITEMS = 40


class Fixed(SequenceModel):
    """Lists the items 5, 4, 3, 2, 1 for everyone, without those that are excluded."""

    generates = True

    def __init__(self) -> None:
        super().__init__(NoItemTable(5, 1), loss=lambda *_: torch.zeros(()))

    def recommend(self, batch: Batch, k: int, exclude: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        items = torch.zeros(batch.num_sequences, k, dtype=torch.int64)
        for row in range(batch.num_sequences):
            left_out = set() if exclude is None else set(exclude[1][exclude[0] == row].tolist())
            best = [item for item in (5, 4, 3, 2, 1) if item not in left_out][:k]
            items[row, : len(best)] = torch.tensor(best, dtype=torch.int64)
        return items, items.float()


def asked(targets: list[int], seen: list[tuple[int, int]]) -> EvaluationBatch:
    rows, items = ([pair[i] for pair in seen] for i in range(2))
    count = len(targets)
    return EvaluationBatch(
        batch=batch_from_arrays(torch.ones(count, dtype=torch.int64).numpy(), torch.arange(count + 1).numpy()),
        users=torch.arange(count),
        targets=torch.tensor(targets),
        history_lengths=torch.ones(count, dtype=torch.int64),
        seen_rows=torch.tensor(rows, dtype=torch.int64),
        seen_items=torch.tensor(items, dtype=torch.int64),
    )


def test_a_rank_is_a_place_and_what_is_not_listed_comes_after() -> None:
    # User 0 has seen 5, so 3 is second; user 1's target has been seen and stays; user 2's is beyond three places.
    found = list_items(Fixed(), asked([3, 5, 1], [(0, 5), (1, 5), (1, 4)]), 3, torch.device("cpu"))
    assert found.ranks.tolist() == [2, 1, 4]
    assert found.items.tolist() == [[4, 3, 2], [5, 3, 2], [5, 4, 3]]


def test_an_empty_place_is_nobodys_target() -> None:
    found = list_items(Fixed(), asked([4], [(0, item) for item in (1, 2, 3, 5)]), 3, torch.device("cpu"))
    assert found.items.tolist() == [[4, 0, 0]]
    assert found.ranks.tolist() == [1]


@pytest.fixture
def config(write_prepared, tmp_path) -> ExperimentConfig:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(1, NUM_ITEMS + 1, (9,), generator=generator).tolist() for _ in range(25)]
    folder = write_prepared(tmp_path / "set", sequences, num_items=NUM_ITEMS)
    return config_from_dict(
        {
            "name": "test",
            "data": {"source": {"name": "synthetic"}, "prepared": str(folder)},
            "semantic_ids": {"path": "unused"},
            "model": {"name": "code-decoder", "dim": 8, "num_layers": 1, "num_heads": 2},
            "loss": {"name": "full-softmax"},
            "train": {"max_steps": 1},
            "evaluation": {"ks": [1, 5, 10], "users_per_batch": 7, "decoding": "exhaustive"},
        }
    )


def test_metrics_are_those_of_ranking_all_scores(config: ExperimentConfig) -> None:
    torch.manual_seed(0)
    model = build_model(config, NUM_ITEMS, semantic_ids=made_up_ids(NUM_ITEMS, (3, 3, 5))).eval()
    assert isinstance(model, CodeModel)
    manifest = load_manifest(config.data.prepared)
    expected = []
    for users in evaluation_batches(config, manifest, "test"):
        with torch.no_grad():
            scores = model.scores_of_all(users.batch)
        targets = scores.gather(1, users.targets.unsqueeze(1))
        scores[users.seen_rows, users.seen_items] = -torch.inf
        expected.append(ranks_of(scores.scatter(1, users.targets.unsqueeze(1), targets), users.targets))
    ranks = torch.cat(expected)
    result = evaluate(model, config, manifest, "test")
    assert result.num_users == 25
    assert result.metrics["hr@10"] == pytest.approx((ranks <= 10).float().mean().item())
    gains = torch.where(ranks <= 5, 1 / torch.log2(ranks + 1.0), 0.0)
    assert result.metrics["ndcg@5"] == pytest.approx(gains.mean().item())


def test_cards_of_other_ways_of_decoding_do_not_agree(config: ExperimentConfig) -> None:
    manifest = load_manifest(config.data.prepared)
    beam, wide = (
        config.model_copy(update={"evaluation": config.evaluation.model_copy(update=update)})
        for update in ({"decoding": "beam"}, {"decoding": "beam", "beam_width": 200})
    )
    cards = [protocol_card(each, manifest, False, "test") for each in (config, beam, wide)]
    assert cards[1]["decoding"].startswith("codes: beam search, width 50;")
    assert cards[1]["inputs"] == "codes"
    assert not protocol_differences(cards[0], cards[0])
    for first, other in ((0, 1), (0, 2), (1, 2)):
        (difference,) = protocol_differences(cards[first], cards[other])
        assert difference.startswith("decoding is ")
