"""What the tests of the losses share: small problems, comparison within a type's precision, and peaks of memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from genrec.losses.negatives import NegativeSampler
from genrec.losses.sampled import SampledSoftmax
from genrec.losses.temperature import Temperature
from genrec.models.item_table import ItemTable

NUM_ITEMS, DIM, NUM_TARGETS = 300, 6, 90
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2}


def problem(dtype: torch.dtype, l2_normalize: bool = False) -> tuple[Tensor, Tensor, ItemTable]:
    """Hidden states, targets and a table."""
    torch.manual_seed(0)
    table = ItemTable(NUM_ITEMS, DIM, std=0.8, l2_normalize=l2_normalize).to(dtype)
    hidden = torch.randn(NUM_TARGETS, DIM).to(dtype).requires_grad_()
    return hidden, torch.randint(1, NUM_ITEMS + 1, (NUM_TARGETS,)), table


def gradients(loss: Tensor, hidden: Tensor, table: ItemTable) -> tuple[Tensor, ...]:
    """By the hidden states and the table, of a multiple of the loss, as the step's normalisation gives one."""
    return torch.autograd.grad(3.0 * loss, (hidden, table.weight))


def assert_near(results: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Equal within the type's tolerance of the largest value."""
    for ours, theirs in zip(results, expected, strict=True):
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(ours.double(), theirs.double(), atol=tolerance * theirs.abs().max().item(), rtol=0)


def vectors(hidden: Tensor, table: ItemTable) -> tuple[Tensor, Tensor]:
    """Both sides in at least fp32, normalised where the table is cosine."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    rows, items = hidden.to(wide), table.weight.to(wide)
    if table.l2_normalize:
        rows, items = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-6) for x in (rows, items))
    return rows, items


def sampled_softmax(
    temperature: float = 1.0, max_logits_bytes: int = 2**20, *, per_position: bool = False, **negatives: int
) -> SampledSoftmax:
    """A sampled softmax; without `negatives` it draws 8 uniformly."""
    sampler = NegativeSampler(**(negatives or {"num_uniform": 8}))
    return SampledSoftmax(Temperature(temperature), sampler, max_logits_bytes, per_position=per_position)


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that `run` holds at a time beside what was there before, as the CPU allocator counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
