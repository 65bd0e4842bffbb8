"""What training on a prepared data set would be, by its plan: steps, windows, spread of costs, padding avoided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.config import ExperimentConfig
from genrec.data.packing import deal_anew, pack, window_cost
from genrec.data.plan import Chunk, Plan, make_plan

IntArray = npt.NDArray[np.int64]

MAX_PACKED_CHUNKS = 32
"""Chunks whose micro-batches are looked at one by one; each has about `batch.chunk_tokens` tokens."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to lay out the same windows: slots for each token, and cost against packed windows (1 is equal).

    A slot holds a token or padding. Costs are those of `genrec.data.packing.window_cost`, padding included.
    """

    slots_per_token: float
    cost: float


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """The first epoch. Spreads, costs and layouts are those of `num_packed_chunks` of its chunks."""

    window: str
    max_length: int
    tokens_per_step: int
    micro_batches_per_step: int
    seed: int
    num_chunks: int
    num_steps: int
    num_micro_batches: int
    num_windows: int
    num_tokens: int
    trained_share: float
    """Tokens in windows / tokens of all histories: below 1 where windows leave out events, above where they overlap."""
    tokens_per_micro_batch: float
    fill: float
    """Tokens / budget of all steps."""
    num_packed_chunks: int
    step_spread_median: float
    """(highest - lowest) / highest cost of the micro-batches of a step: the median over steps."""
    step_spread_max: float
    cost_max_to_mean: float
    """Most expensive micro-batch / mean."""
    padded_to_longest: Layout
    padded_to_max_length: Layout


def plan_facts(config: ExperimentConfig) -> PlanFacts:
    """The facts of a config's first epoch; raises ConfigError or DataError when there is nothing to plan."""
    plan = make_plan(config)
    chunks = plan.epoch(0)
    number = {(group.path, group.group): index for index, group in enumerate(plan.row_groups)}
    lengths = [_window_lengths(plan, chunk, number) for chunk in chunks]
    rule, parts = plan.spec.rule, plan.spec.parts
    num_steps = sum(chunk.num_steps for chunk in chunks)
    num_tokens = sum(chunk.num_tokens for chunk in chunks)
    num_parts = num_steps * parts
    chosen = np.unique(np.linspace(0, len(chunks) - 1, min(len(chunks), MAX_PACKED_CHUNKS)).round().astype(int))
    packed = [_micro_batches(plan, chunks[index], lengths[index]) for index in chosen.tolist()]
    spread = _step_spread(np.concatenate([one.cost for one in packed]), parts)
    cost = np.concatenate([part.cost for part in packed])
    return PlanFacts(
        window=config.sequence.window,
        max_length=config.sequence.max_length,
        tokens_per_step=rule.tokens_per_step,
        micro_batches_per_step=parts,
        seed=config.seed,
        num_chunks=len(chunks),
        num_steps=num_steps,
        num_micro_batches=num_parts,
        num_windows=sum(len(found) for found in lengths),
        num_tokens=num_tokens,
        trained_share=num_tokens / sum(int(group.tokens.sum()) for group in plan.row_groups),
        tokens_per_micro_batch=num_tokens / num_parts,
        fill=num_tokens / (num_steps * rule.tokens_per_step),
        num_packed_chunks=len(packed),
        step_spread_median=float(np.median(spread)),
        step_spread_max=float(spread.max()),
        cost_max_to_mean=float(cost.max() / cost.mean()),
        padded_to_longest=_padded(packed, [part.longest for part in packed]),
        padded_to_max_length=_padded(packed, [np.full_like(p.longest, config.sequence.max_length) for p in packed]),
    )


def _window_lengths(plan: Plan, chunk: Chunk, number: Mapping[tuple[str, int], int]) -> IntArray:
    """Lengths of a chunk's windows, [num_windows]; `number` of a row group in the plan, by file and place in it."""
    visits = [(number[visit.path, visit.group], visit.epoch) for visit in chunk.row_groups]
    return np.concatenate([plan.visit_lengths(visit) for visit in visits])


@dataclass(frozen=True, slots=True)
class _MicroBatches:
    """The micro-batches of a chunk, [num_micro_batches] each."""

    num_windows: IntArray
    tokens: IntArray
    longest: IntArray
    cost: npt.NDArray[np.float64]


def _micro_batches(plan: Plan, chunk: Chunk, lengths: IntArray) -> _MicroBatches:
    # Which window of several equally long ones goes where is drawn; how many of which length each micro-batch gets, and
    # so everything that is measured here, follows from the lengths alone.
    spec = plan.spec
    order, borders = pack(lengths, spec.rule, chunk.num_steps, spec.generator(chunk.epoch, chunk.index))
    packed = lengths[order]
    if spec.dealt_anew is not None:
        order, borders = deal_anew(packed, borders, spec.rule, spec.dealt_anew)
        packed = packed[order]
    num_windows = np.diff(borders)
    owner = np.repeat(np.arange(len(num_windows)), num_windows)
    cost: npt.NDArray[np.float64] = np.zeros(len(num_windows))
    longest = np.zeros(len(num_windows), dtype=np.int64)
    np.maximum.at(longest, owner, packed)
    np.add.at(cost, owner, window_cost(packed))
    return _MicroBatches(
        num_windows=num_windows,
        tokens=np.bincount(owner, weights=packed, minlength=len(num_windows)).astype(np.int64),
        longest=longest,
        cost=cost,
    )


def _step_spread(cost: npt.NDArray[np.float64], parts: int) -> npt.NDArray[np.float64]:
    by_step = cost.reshape(-1, parts)
    highest = by_step.max(axis=1)
    spread: npt.NDArray[np.float64] = (highest - by_step.min(axis=1)) / highest
    return spread


def _padded(packed: Sequence[_MicroBatches], padded_length: Sequence[IntArray]) -> Layout:
    """All windows of a micro-batch at its `padded_length` [num_micro_batches]."""
    slots = cost = 0.0
    for part, length in zip(packed, padded_length, strict=True):
        slots += float((part.num_windows * length).sum())
        cost += float((part.num_windows * window_cost(length)).sum())
    return Layout(
        slots_per_token=slots / sum(int(part.tokens.sum()) for part in packed),
        cost=cost / sum(float(part.cost.sum()) for part in packed),
    )
