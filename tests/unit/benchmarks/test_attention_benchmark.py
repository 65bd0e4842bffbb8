"""Every kernel of the attention benchmark computes what its reference does, and one that does not is refused."""

from argparse import Namespace

import pytest
import torch

import attention
from attention import check, measure


def test_every_kernel_has_its_readings() -> None:
    """`measure` compares outputs and gradients with the reference before it times them."""
    sizes = {"lengths": [5, 70], "tokens": 140, "heads": 2, "dim": 4}
    result = measure(Namespace(**sizes, rounds=2, device="cpu", threads=1))
    kernels = {(row["attention"], row["kernel"]) for row in result.rows}
    assert kernels == {
        ("softmax", "reference"),
        ("softmax", "genrec"),
        ("softmax", "library"),
        ("hstu", "reference"),
        ("hstu", "genrec"),
    }
    assert len(result.rows) == len(kernels) * 2 * 2 * 2  # lengths, directions, rounds
    assert result.medians["hstu backward 70 genrec"]["times_reference"]["count"] == 2


def test_a_reference_without_memory_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB.")

    monkeypatch.setattr(attention, "check", no_memory)
    result = measure(Namespace(lengths=[5], tokens=10, heads=2, dim=4, rounds=1, device="cpu", threads=1))
    assert [(row["attention"], row["direction"], row["status"]) for row in result.rows] == [
        (family, direction, "out-of-memory") for family in ("softmax", "hstu") for direction in ("forward", "backward")
    ]
    assert result.medians == {}


def test_a_wrong_kernel_is_refused() -> None:
    kernels = {"reference": lambda rows: rows * 2, "wrong": lambda rows: rows * 2.1}
    with pytest.raises(ValueError, match=r"wrong is off by 0\.05 for doubling"):
        check(kernels, torch.ones(3, 4), "forward", "doubling")
