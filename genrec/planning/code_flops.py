"""Arithmetic of models that write codes, and what their attention sees of a window: see flops.py for the words.

code-decoder, codes    a window of n events is one sequence of n * (levels + separator) + levels - 1 tokens
code-decoder, items    a sequence of n tokens, and n short ones of a token for each level
tiger                  n histories of 1, 2, .. n events (at most max_history), a token for each code

With `inputs.users` each of these sequences but the short ones has one token more.
"""

import numpy as np

from genrec.config import ExperimentConfig
from genrec.config_models import CodeDecoderConfig, TigerConfig
from genrec.data.packing import IntArray
from genrec.models.decoder import feed_forward_dim_of


def attended_lengths(config: ExperimentConfig, num_levels: int, lengths: IntArray) -> IntArray:
    """Tokens of every sequence that attention over histories sees, for windows of `lengths` [num_windows] events."""
    model, user = config.model, int(config.inputs.users is not None)
    if isinstance(model, TigerConfig):
        ends = np.repeat(np.cumsum(lengths), lengths)
        prefixes = np.arange(1, int(lengths.sum()) + 1) - (ends - np.repeat(lengths, lengths))
        histories: IntArray = np.minimum(prefixes, model.max_history) * num_levels + user
        return histories
    if isinstance(model, CodeDecoderConfig) and model.history == "codes":
        return lengths * (num_levels + int(model.separator)) + num_levels - 1 + user
    return lengths + user


def code_flops(
    config: ExperimentConfig, code_sizes: tuple[int, ...], lengths: IntArray
) -> tuple[float, float, float, float, float]:
    """Forward FLOPs of a step: projections, attention, feed-forward, other, loss."""
    num_levels, dim = len(code_sizes), config.model.dim
    seen = attended_lengths(config, num_levels, lengths).astype(np.float64)
    events, tokens, squares = float(lengths.sum()), float(seen.sum()), float((seen * seen).sum())
    model = config.model
    if isinstance(model, TigerConfig):
        layers, inner, written = model.num_layers, model.num_heads * model.head_dim, events * num_levels
        # Encoder and decoder have queries, keys, values and outputs; cross-attention has keys and values of histories.
        matrices = 4 * tokens + 4 * written + 2 * written + 2 * tokens
        pairs = squares + written * num_levels + tokens * num_levels
        return (
            2 * layers * dim * inner * matrices,
            4 * layers * inner * pairs,
            2 * layers * 2 * dim * model.feed_forward_dim * (tokens + written),
            0.0,
            2 * written * dim * sum(code_sizes),
        )
    assert isinstance(model, CodeDecoderConfig)
    head_dim = dim // model.num_heads
    projections = dim * head_dim * (model.num_heads + 2 * model.key_value_heads) + dim * dim
    of_layers, halves = model.num_layers * tokens, model.num_layers * squares / 2
    if model.history == "items":
        writers = model.level_layers or 1
        of_layers += writers * events * num_levels
        halves += writers * events * num_levels**2 / 2
    return (
        2 * projections * of_layers,
        4 * dim * halves,
        2 * 3 * dim * feed_forward_dim_of(model) * of_layers,
        0.0,
        2 * events * dim * sum(code_sizes),
    )
