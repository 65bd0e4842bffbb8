"""The benchmark of the losses measures what it says: the same loss in two ways, and readings of every contender."""

from argparse import Namespace

import pytest

import losses
from losses import LOSSES, MATERIALISED, NUM_TARGETS, Contender, measure
from script import out_of_memory_row


def test_the_materialised_softmax_is_the_chunked_one() -> None:
    plain, chunked = (Contender(name, 8, 50) for name in (MATERIALISED, "full"))
    plain.model.item_table.weight.data[0] = -1e4  # the plain one has a logit for padding
    values = [
        c.model.loss(chunked.hidden.abs(), chunked.batch.targets, c.model.item_table).item() for c in (plain, chunked)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_every_loss_has_its_readings() -> None:
    result = measure(Namespace(items=50, dims=[8], rounds=1, only=["full", "in-batch-16384"], threads=1))
    assert set(result.medians) == {"materialised dim 8", "full dim 8", "in-batch-16384 dim 8"}
    assert len(result.rows) == 3 * 2
    assert result.medians["full dim 8"]["step_times_materialised"]["count"] == 1
    assert result.medians["materialised dim 8"]["loss_times_materialised"]["median"] == 1.0
    assert NUM_TARGETS == 6_400 and len(LOSSES) == 11


def test_a_loss_without_memory_is_a_row_and_then_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setitem(losses.OTHERS, "deepspeed-chunked", no_memory)
    result = measure(Namespace(items=50, dims=[8], rounds=1, only=["full", "deepspeed-chunked"], threads=1))
    (failed,) = (row for row in result.rows if row["status"] != "ok")
    assert (failed["loss"], failed["status"]) == ("deepspeed-chunked", "out-of-memory")
    assert len(result.rows) == 1 + 2 * 2
    assert result.medians["deepspeed-chunked dim 8"]["step_times_materialised"] is None


def test_another_error_is_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        out_of_memory_row(RuntimeError("shapes do not match"))
