"""Arithmetic of one training step, forward and backward, in floating-point operations (FLOPs).

What counts is the arithmetic that the model asks for, not what a kernel happens to do: activations that are computed
again and padding count for nothing, and a matrix product of [m, k] with [k, n] is 2 m k n, three times in a training
step (once forward, and once for the gradient of each factor). n are the lengths of the sequences, T their sum:

    matrices     6 * T * (weights in matrices)                       biases, norms and element-wise parts are left out
    attention    3 * sum of n^2 * heads * (query_dim + value_dim)    causal: half of the full square; HSTU: 3.5 for 3
    loss         6 * T * dim * candidates                            all items, or the target and its negatives

HSTU is counted as NVIDIA's recsys-examples do (examples/hstu/training/benchmark/PERF_ANALYSIS.md, section 1.6), so that
a utilisation can be compared with theirs: the backward pass of attention is 2.5 forward passes, because a fused kernel
computes the scores again, and a few element-wise parts are added. Their formula stops at the last layer; the loss here
is a part of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.config import ExperimentConfig, FullSoftmaxConfig
from genrec.config_models import DecoderConfig, ESASRecConfig, HSTUConfig, SASRecConfig
from genrec.models.decoder import feed_forward_dim_of
from genrec.planning.code_flops import code_flops

PASSES = 3
"""Products in a training step for each product of the forward pass."""

HSTU_ATTENTION_PASSES = 3.5
"""The same for HSTU's attention, in NVIDIA's formula."""

Lengths = Sequence[int] | npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs of a step over all workers, forward and backward.

    projections   matrices before and after attention, gates of residual paths included
    attention     scores and weighted sums, under the causal mask
    feed_forward  matrices of the feed-forward parts
    other         HSTU's element-wise parts, the heads, the projection of item vectors
    loss          scores of the candidates
    """

    projections: float
    attention: float
    feed_forward: float
    other: float
    loss: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.projections + self.attention + self.feed_forward + self.other + self.loss


@dataclass(frozen=True, slots=True)
class _Matrices:
    """Weights in the matrices of one layer, and what one pair of events costs its attention forward."""

    projections: float
    feed_forward: float
    flops_per_pair: float
    """2 * heads * (query_dim + value_dim), for a query and a key that it sees."""


def step_flops(
    config: ExperimentConfig,
    num_items: int,
    lengths: Lengths,
    *,
    num_actions: int = 0,
    vector_dim: int = 0,
    code_sizes: tuple[int, ...] = (),
) -> StepFlops:
    """FLOPs of a step whose sequences have these `lengths`, all workers together.

    `num_items` is the catalogue that the loss compares with, `num_actions` those that an action head tells apart,
    `vector_dim` the width of frozen item vectors, and `code_sizes` the levels of items that are codes. Every event is
    taken for a target, and every looked-up row of item vectors for a row of its own.
    """
    if config.writes_codes:
        parts = code_flops(config, code_sizes, np.asarray(lengths, dtype=np.int64))
        return StepFlops(*(PASSES * part for part in parts))
    sizes = np.asarray(lengths, dtype=np.float64)
    tokens, squares = float(sizes.sum()), float((sizes * sizes).sum())
    model, layers = config.model, config.model.num_layers
    layer = _layer_matrices(config)
    attention_passes = HSTU_ATTENTION_PASSES if isinstance(model, HSTUConfig) else PASSES
    return StepFlops(
        projections=PASSES * 2 * tokens * layers * layer.projections,
        attention=attention_passes * layers * layer.flops_per_pair * squares / 2,
        feed_forward=PASSES * 2 * tokens * layers * layer.feed_forward,
        other=_hstu_elementwise(config, tokens)
        + _heads(config, tokens, num_actions)
        + _item_vectors(config, num_items, tokens, vector_dim),
        loss=PASSES * 2 * tokens * model.dim * candidates(config, num_items),
    )


def candidates(config: ExperimentConfig, num_items: int) -> int:
    """Items that the loss scores for each target: all of them, or the target and its negatives."""
    loss = config.loss
    return num_items if isinstance(loss, FullSoftmaxConfig) else 1 + loss.num_negatives


def _layer_matrices(config: ExperimentConfig) -> _Matrices:
    model = config.model
    dim = model.dim
    if isinstance(model, HSTUConfig):
        gated = model.num_heads * model.value_dim
        queries_and_keys = 2 * model.num_heads * model.query_dim
        read = gated * (3 if model.concat_ua else 1)
        pair = 2 * model.num_heads * (model.query_dim + model.value_dim)
        return _Matrices(dim * (2 * gated + queries_and_keys) + read * dim, 0, pair)
    pair = 4 * dim  # scores and weighted sum: 2 * dim each, whatever the number of heads
    if isinstance(model, DecoderConfig):
        head_dim = dim // model.num_heads
        qkv = dim * head_dim * (model.num_heads + 2 * model.key_value_heads)
        return _Matrices(qkv + dim * dim, 3 * dim * feed_forward_dim_of(model), pair)
    if isinstance(model, ESASRecConfig):  # two gates of residual paths
        return _Matrices(6 * dim * dim, 3 * dim * (model.feed_forward_dim or 4 * dim), pair)
    assert isinstance(model, SASRecConfig)
    return _Matrices(4 * dim * dim, 2 * dim * (model.feed_forward_dim or dim), pair)


def _hstu_elementwise(config: ExperimentConfig, tokens: float) -> float:
    """Gates and residuals of HSTU as NVIDIA counts them: 2 T N D + T N H a layer."""
    model = config.model
    if not isinstance(model, HSTUConfig):
        return 0.0
    return model.num_layers * tokens * model.num_heads * (2 * model.value_dim + model.dim)


def _heads(config: ExperimentConfig, tokens: float, num_actions: int) -> float:
    dim, weights = config.model.dim, 0
    if config.heads.action is not None:
        weights += 2 * dim * dim + dim * num_actions
    if config.heads.dwell is not None:
        weights += 2 * dim * dim + dim
    return PASSES * 2 * tokens * weights


def _item_vectors(config: ExperimentConfig, num_items: int, tokens: float, vector_dim: int) -> float:
    """Projections of frozen vectors: forward and the gradient of the projection; the vectors get none."""
    if config.inputs.item_vectors is None:
        return 0.0
    loss, parts = config.loss, config.batch.micro_batches_per_step
    if isinstance(loss, FullSoftmaxConfig) or loss.per_position:
        scored = float(parts * num_items)  # every micro-batch makes the whole table
    else:
        scored = tokens + parts * loss.num_negatives
    inputs_of_heads = tokens if config.heads.weights else 0.0
    return 2 * 2 * (tokens + scored + inputs_of_heads) * vector_dim * config.model.dim
