"""Seeding by micro-batch, and losses that are not numbers."""

import pytest
import torch

from genrec.data.batch import MicroBatchId, batch_from_arrays
from genrec.data.stream import Place
from genrec.errors import RunError
from genrec.training.loop import seed_micro_batch, train
from genrec.training.state import TrainState


def draw(seed: int, *micro_batch_id: int) -> float:
    seed_micro_batch(seed, MicroBatchId(*micro_batch_id))
    return torch.rand(1).item()


def test_randomness_belongs_to_the_micro_batch() -> None:
    assert draw(1, 0, 0, 0) == draw(1, 0, 0, 0)
    ids = [(epoch, chunk, position) for epoch in range(4) for chunk in range(4) for position in range(8)]
    assert len({draw(seed, *i) for seed in (1, 2) for i in ids}) == 2 * len(ids)


class ConstantEngine:
    def __init__(self, loss: float) -> None:
        self.loss = loss
        self.model = torch.nn.Linear(1, 1)

    def micro_step(self, *_: object, **__: object) -> float:
        return self.loss


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_by_name(tmp_path, write_prepared, make_config, loss: float) -> None:
    config = make_config(write_prepared(tmp_path / "set", [[1, 2, 3, 4]]))
    batch = batch_from_arrays(torch.tensor([1]).numpy(), torch.tensor([0, 1]).numpy())
    with pytest.raises(RunError, match=r"in step 0 is (nan|inf); lower optimizer.lr"):
        train(config, ConstantEngine(loss), [(Place(0, 0, 0.5, False), batch)], [], TrainState(), 1)
