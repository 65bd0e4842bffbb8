"""The benchmark of the losses measures what it says: the same loss in two ways, and readings of every contender."""

from argparse import Namespace
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import losses
from losses import LOSSES, MATERIALISED, NUM_TARGETS, Contender, measure
from script import out_of_memory_row


def arguments(*only: str, matmul_precision: str = "highest") -> Namespace:
    """What the command line would hold."""
    return Namespace(items=50, dims=[8], rounds=1, only=list(only), threads=1, matmul_precision=matmul_precision)


def test_the_materialised_softmax_is_the_chunked_one() -> None:
    plain, chunked = (Contender(name, 8, 50) for name in (MATERIALISED, "full"))
    plain.model.item_table.weight.data[0] = -1e4  # the plain one has a logit for padding
    values = [
        c.model.loss(chunked.hidden.abs(), chunked.batch.targets, c.model.item_table).item() for c in (plain, chunked)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_every_loss_has_its_readings() -> None:
    result = measure(arguments("full", "in-batch-16384"))
    assert set(result.medians) == {"materialised dim 8", "full dim 8", "in-batch-16384 dim 8"}
    assert len(result.rows) == 3 * 2
    assert result.medians["full dim 8"]["step_times_materialised"]["count"] == 1
    assert result.medians["materialised dim 8"]["loss_times_materialised"]["median"] == 1.0
    assert NUM_TARGETS == 6_400 and len(LOSSES) == 11


def test_the_materialised_softmax_alone_stays_at_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {}
    for name, function in list(losses.OTHERS.items()):

        def noted(*tensors: Tensor, name: str = name, function: Callable[..., Tensor] = function) -> Tensor:
            seen.setdefault(name, set()).add(torch.get_float32_matmul_precision())
            return function(*tensors)

        monkeypatch.setitem(losses.OTHERS, name, noted)
    result = measure(arguments("deepspeed-linear", matmul_precision="high"))
    assert seen == {MATERIALISED: {"highest"}, "deepspeed-linear": {"high"}}
    assert result.config["matmul_precision"] == "high"
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_loss_without_memory_is_a_row_and_then_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setitem(losses.OTHERS, "deepspeed-chunked", no_memory)
    result = measure(arguments("full", "deepspeed-chunked"))
    (failed,) = (row for row in result.rows if row["status"] != "ok")
    assert (failed["loss"], failed["status"]) == ("deepspeed-chunked", "out-of-memory")
    assert len(result.rows) == 1 + 2 * 2
    assert result.medians["deepspeed-chunked dim 8"]["step_times_materialised"] is None


def test_another_error_is_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        out_of_memory_row(RuntimeError("shapes do not match"))
