"""Muon's work shared over the workers: each factor is made once, and no bit depends on how weights are dealt out."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from genrec.training import flat_parts, muon
from genrec.training.muon import Orthogonalizer, groups_of, muon_step, owners_of

SHAPES = [(6, 10), (10, 6), (3, 3), (1, 7), (16, 5)]
STEPS = 3
Result = TypeVar("Result")


class Team:
    """Stands in for `torch.distributed`: every worker is a thread, and a call that one misses is an error."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.barrier = threading.Barrier(workers, timeout=30)
        self.own = threading.local()
        self.values: list[Tensor] = [torch.zeros(0)] * workers
        self.num_gathers = 0

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return self.workers

    def get_rank(self) -> int:
        rank: int = self.own.rank
        return rank

    def all_gather(self, outputs: list[Tensor], value: Tensor) -> None:
        self.values[self.own.rank] = value
        self.num_gathers += self.own.rank == 0
        self.barrier.wait()
        for output, of_worker in zip(outputs, self.values, strict=True):
            output.copy_(of_worker)
        self.barrier.wait()

    def run(self, work: Callable[[int], Result]) -> list[Result]:
        def as_worker(rank: int) -> Result:
            self.own.rank = rank
            try:
                return work(rank)
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(as_worker, range(self.workers)))


class Counting(Orthogonalizer):
    """An orthogonalizer that knows what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, update: Tensor) -> Tensor:
        self.asked.append(tuple(update.shape))
        return super().__call__(update)


def dealt_out(tensors: list[Tensor], workers: int, *, singly: bool) -> list[Tensor]:
    """The workers' flat parts of `tensors`, by the rule of ZeRO 3 (`singly`) or of ZeRO 1 and 2, written out."""

    def cut(flat: Tensor, multiple: int) -> list[Tensor]:
        padded = torch.cat([flat, flat.new_zeros(-flat.numel() % multiple)])
        return list(padded.view(workers, -1))

    if not singly:
        return cut(torch.cat([tensor.flatten() for tensor in tensors]), 2 * workers)
    pieces = [cut(tensor.flatten(), workers) for tensor in tensors]
    return [torch.cat([piece[rank] for piece in pieces]) for rank in range(workers)]


@pytest.mark.parametrize("singly", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3, 40])
def test_tensors_come_back_from_their_parts(monkeypatch: pytest.MonkeyPatch, workers: int, singly: bool) -> None:
    team = Team(workers)
    monkeypatch.setattr(flat_parts, "dist", team)
    torch.manual_seed(0)
    tensors = [torch.randn(shape) for shape in SHAPES]
    parts = dealt_out(tensors, workers, singly=singly)
    for found in team.run(lambda rank: flat_parts.gather_several(parts[rank], SHAPES, singly=singly)):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, tensors, strict=True))


def group_of(weights: list[Tensor]) -> dict[str, Any]:
    return {"params": weights, "shapes": SHAPES, "lr": 0.1, "weight_decay": 0.2, "momentum": 0.9}


def start_and_gradients() -> tuple[list[Tensor], list[list[Tensor]]]:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in SHAPES]
    return start, [[torch.randn(shape) for shape in SHAPES] for _ in range(STEPS)]


def trained(weights: list[Tensor], gradients: list[list[Tensor]], factor: Orthogonalizer, singly: bool) -> list[Tensor]:
    """Weights and momenta after some steps; the weights are whole, or one flat part."""
    states: dict[Tensor, dict[str, Any]] = {weight: {} for weight in weights}
    for of_step in gradients:
        for weight, gradient in zip(weights, of_step, strict=True):
            weight.grad = gradient.clone()
        muon_step(group_of(weights), states, factor, singly=singly)
    return [*weights, *(states[weight]["exp_avg"] for weight in weights)]


def alone() -> list[Tensor]:
    start, gradients = start_and_gradients()
    return trained(start, gradients, Orthogonalizer(), singly=False)


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_whole_matrices_are_shared_out_to_the_bit(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    expected = alone()
    team = Team(workers)
    monkeypatch.setattr(flat_parts, "dist", team)
    start, gradients = start_and_gradients()
    counts = [Counting() for _ in range(workers)]
    found = team.run(lambda r: trained([w.clone() for w in start], gradients, counts[r], singly=False))
    for of_worker in found:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(of_worker, expected, strict=True))
    check_shares(counts)
    assert team.num_gathers == STEPS


def check_shares(counts: list[Counting]) -> None:
    """Every factor is made by one worker, in every step by the same one, and nobody idles while others have two."""
    assert sorted(shape for count in counts for shape in count.asked) == sorted(SHAPES * STEPS)
    shares = [len(count.asked) // STEPS for count in counts]
    assert sum(share > 0 for share in shares) == min(len(counts), len(SHAPES))
    assert all(count.asked[: len(count.asked) // STEPS] * STEPS == count.asked for count in counts)


@pytest.mark.parametrize("singly", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_flat_parts_are_shared_out_to_the_bit(monkeypatch: pytest.MonkeyPatch, workers: int, singly: bool) -> None:
    expected = alone()
    team = Team(workers)
    monkeypatch.setattr(flat_parts, "dist", team)
    start, gradients = start_and_gradients()
    weights = dealt_out(start, workers, singly=singly)
    of_steps = [dealt_out(of_step, workers, singly=singly) for of_step in gradients]
    counts = [Counting() for _ in range(workers)]
    found = team.run(
        lambda r: trained([weights[r].clone()], [[parts[r]] for parts in of_steps], counts[r], singly=singly)
    )
    for number, whole in enumerate((expected[: len(SHAPES)], expected[len(SHAPES) :])):
        for ours, theirs in zip(found, dealt_out(whole, workers, singly=singly), strict=True):
            assert torch.equal(ours[number], theirs)  # padding, which is zero, too
    check_shares(counts)


def test_shares_cost_about_the_same() -> None:
    """Twelve blocks of a decoder of 2048 dims on 8 workers: the largest share is within a tenth of the mean."""
    shapes = 12 * [(3072, 2048), (2048, 2048), (11264, 2048), (2048, 5632)]
    owners = owners_of(shapes, 8)
    costs = [min(shape) ** 2 * (2 * max(shape) + min(shape)) for shape in shapes]
    loads = [sum(c for c, owner in zip(costs, owners, strict=True) if owner == worker) for worker in range(8)]
    assert max(loads) < 1.1 * sum(loads) / 8
    assert owners_of([(4, 4)] * 3, 5) == [0, 1, 2]
    assert owners_of([(4, 4)] * 3, 1) == [0, 0, 0]


def test_groups_hold_so_many_values_and_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "GROUP_NUMEL", 130)
    assert groups_of(SHAPES) == [[0, 1, 2], [3, 4]]
    assert groups_of([(20, 10), (1, 2), (20, 10)]) == [[0], [1], [2]]  # a matrix is never cut
    assert groups_of([]) == []
