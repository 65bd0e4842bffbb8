"""Helpers of the model tests: random jagged batches, and literal padded transcriptions of the models."""

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.config import ExperimentConfig, config_from_dict
from genrec.config_models import DecoderConfig, ESASRecConfig, HSTUConfig, SASRecConfig
from genrec.data.batch import Batch, batch_from_arrays
from genrec.models.decoder import Decoder
from genrec.models.hstu import HSTU
from genrec.models.sasrec import SASRec

NUM_ITEMS = 50
MAX_LENGTH = 80  # over one row block, so that attention runs in more than one tile
LENGTHS = (3, 1, 70, 17, 80, 17, 2, 40)
SASREC: dict[str, Any] = {"name": "sasrec", "dim": 12, "num_heads": 2, "num_layers": 2, "feed_forward_dim": 20}
HSTU_: dict[str, Any] = {"name": "hstu", "dim": 12, "num_heads": 2, "num_layers": 2, "query_dim": 5, "value_dim": 7}
ESASREC: dict[str, Any] = {"name": "esasrec", "dim": 12, "num_heads": 2, "num_layers": 2}
DECODER: dict[str, Any] = {
    "name": "decoder",
    "dim": 24,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "num_layers": 2,
    "feed_forward_dim": 20,
    "rope_base": 100.0,
}


def experiment(
    model: dict[str, Any], loss: dict[str, Any] | None = None, max_length: int = MAX_LENGTH
) -> ExperimentConfig:
    """A config with this model, full softmax unless told otherwise."""
    return config_from_dict(
        {
            "name": "test",
            "data": {"source": {"name": "synthetic"}, "prepared": "unused"},
            "sequence": {"max_length": max_length},
            "model": model,
            "loss": loss or {"name": "full-softmax"},
            "train": {"max_steps": 1},
        }
    )


def random_batch(lengths: tuple[int, ...] = LENGTHS, num_items: int = NUM_ITEMS, seed: int = 0) -> Batch:
    """Sequences with gaps from none to years; each event's target is the next one, the last event's is drawn."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {"items": [], "targets": [], "times": [], "target_times": []}
    for length in lengths:
        items = rng.integers(1, num_items + 1, length + 1)
        gaps = np.floor(np.exp(rng.uniform(0, 18, length + 1))) * (rng.random(length + 1) > 0.3)
        times = 1_000_000_000 + np.cumsum(gaps).astype(np.int64)
        parts["items"].append(items[:-1])
        parts["targets"].append(items[1:])
        parts["times"].append(times[:-1])
        parts["target_times"].append(times[1:])
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return batch_from_arrays(joined.pop("items"), np.concatenate([[0], np.cumsum(lengths)]), **joined)


def select_sequences(batch: Batch, order: list[int]) -> tuple[Batch, Tensor]:
    """The batch of these sequences in this order, and the token indices it is made of."""
    lengths = batch.offsets.diff()
    tokens = torch.cat([torch.arange(int(batch.offsets[i]), int(batch.offsets[i + 1])) for i in order])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths[order].cumsum(0)])
    per_token = ("items", "times", "actions", "targets", "target_times")
    chosen = {name: getattr(batch, name)[tokens] for name in per_token}
    users = None if batch.users is None else batch.users[order]
    return dataclasses.replace(batch, offsets=offsets, users=users, **chosen), tokens


def padded(values: Tensor, offsets: Tensor, length: int) -> Tensor:
    """[num_sequences, length, ...], right-padded with zeros."""
    out = values.new_zeros(offsets.shape[0] - 1, length, *values.shape[1:])
    for i in range(offsets.shape[0] - 1):
        part = values[offsets[i] : offsets[i + 1]]
        out[i, : part.shape[0]] = part
    return out


def literal_hstu(model: HSTU, batch: Batch, max_length: int, config: HSTUConfig) -> Tensor:
    """HSTU.encode on a padded [batch, N] grid with einsum, term by term as published; [num_tokens, dim].

    Two published lines are corrected: softmax there counts the future in its denominator, and a sequence's own length
    there is that of the whole sequence, so both would tell a row about later events.
    """
    lengths = batch.offsets.diff()
    num_heads, n = model.num_heads, max_length
    ids = padded(batch.items, batch.offsets, n)
    # Times of length N + 1: the history, and the time of the event after it.
    times = F.pad(padded(batch.times, batch.offsets, n), (0, 1))
    for i, length in enumerate(lengths.tolist()):
        times[i, length] = batch.target_times[batch.offsets[i + 1] - 1]
    real = (ids != 0).to(model.item_table.weight.dtype).unsqueeze(-1)
    dim = model.item_table.dim
    x = (F.embedding(ids, model.item_table.weight) * dim**0.5 + model.input.positions[:n]) * real
    mask = torch.ones(n, n, dtype=x.dtype).tril()
    for layer in model.layers:
        normed = F.layer_norm(x, (dim,), eps=1e-6)
        u = F.silu(normed @ layer.gate.weight.T)
        v, q, k = (
            F.silu(normed @ layer.value_query_key.weight.T)
            .view(*ids.shape, num_heads, -1)
            .split([config.value_dim, config.query_dim, config.query_dim], dim=-1)
        )
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k)
        if config.attention.name == "silu" and config.attention.scale:
            scores = scores / config.query_dim**0.5
        rows, columns = torch.arange(n)[:, None], torch.arange(n)[None, :]
        if layer.position_bias is not None:
            scores = scores + layer.position_bias[(rows - columns).clamp(min=0)]
        if layer.time_bias is not None:
            query_times = times[:, 1:] if config.query_time else times[:, :-1]
            gaps = (query_times[:, :, None] - times[:, None, :-1]).abs().clamp(min=1).double()
            scores = scores + layer.time_bias[(gaps.log() / 0.301).floor().long().clamp(0, 128)][:, None]
        if config.attention.name == "softmax":
            weights = (scores / config.query_dim**0.5).masked_fill(mask == 0, -torch.inf).softmax(-1)
        elif config.attention.divisor == "length":
            weights = F.silu(scores) / (rows + 1) * mask
        else:
            weights = F.silu(scores) / n * mask
        attended = torch.einsum("bhnm,bmhd->bnhd", weights, v * real[..., None]).flatten(2)
        a = F.layer_norm(attended, (attended.shape[-1],), eps=1e-6)
        gated = torch.cat([u, a, u * a], dim=-1) if config.concat_ua else u * a
        x = (gated @ layer.output.weight.T + layer.output.bias + x) * real
    return torch.cat([x[i, :length] for i, length in enumerate(lengths.tolist())])


def literal_sasrec(model: SASRec, batch: Batch, max_length: int, config: SASRecConfig) -> Tensor:
    """SASRec.encode on a padded grid, with a softmax over explicitly masked scores; [num_tokens, dim]."""
    lengths = batch.offsets.diff()
    ids = padded(batch.items, batch.offsets, max_length)
    dim, num_heads = model.item_table.dim, model.num_heads
    x = F.embedding(ids, model.item_table.weight) * dim**0.5 + model.input.positions[:max_length]
    future = torch.ones(max_length, max_length, dtype=torch.bool).triu(1)
    for block in model.blocks:
        normed = F.layer_norm(x, (dim,), block.attention_norm.weight, block.attention_norm.bias, 1e-8)
        qkv = normed @ block.query_key_value.weight.T + block.query_key_value.bias
        q, k, v = qkv.view(*ids.shape, num_heads, 3, dim // num_heads).unbind(3)
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / (dim // num_heads) ** 0.5
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        attended = torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)
        x = x + attended @ block.attention_output.weight.T + block.attention_output.bias
        normed = F.layer_norm(x, (dim,), block.feed_forward_norm.weight, block.feed_forward_norm.bias, 1e-8)
        inner = torch.relu(normed @ block.expand.weight.T + block.expand.bias)
        x = x + inner @ block.contract.weight.T + block.contract.bias
    x = F.layer_norm(x, (dim,), model.norm.weight, model.norm.bias, 1e-8)
    return torch.cat([x[i, :length] for i, length in enumerate(lengths.tolist())])


def literal_esasrec(model: SASRec, batch: Batch, max_length: int, config: ESASRecConfig) -> Tensor:
    """SASRec with LiGR layers on a padded grid: torch's own attention module, two gated sums; [num_tokens, dim].

    x = x + sigmoid(W1 x) * MHA(LN x);  x = x + sigmoid(W2 x) * FFN(LN x);  FFN(x) = W5 (silu(W3 x) * W4 x).
    """
    lengths = batch.offsets.diff()
    ids = padded(batch.items, batch.offsets, max_length)
    dim, num_heads = config.dim, config.num_heads
    x = F.embedding(ids, model.item_table.weight) * dim**0.5 + model.input.positions[:max_length]
    future = torch.ones(max_length, max_length, dtype=torch.bool).triu(1)
    for block in model.blocks:
        # Rows of the module's in_proj are all of q, then k, then v; ours go head by head.
        by_head = torch.arange(3 * dim).view(num_heads, 3, dim // num_heads).transpose(0, 1).flatten()
        normed = F.layer_norm(x, (dim,), block.attention_norm.weight, block.attention_norm.bias, 1e-5).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            normed,
            normed,
            normed,
            embed_dim_to_check=dim,
            num_heads=num_heads,
            in_proj_weight=block.query_key_value.weight[by_head],
            in_proj_bias=block.query_key_value.bias[by_head],
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=block.attention_output.weight,
            out_proj_bias=block.attention_output.bias,
            attn_mask=future,
            need_weights=False,
        )
        gate = torch.sigmoid(x @ block.attention_gate.weight.T + block.attention_gate.bias)
        x = x + gate * attended.transpose(0, 1)
        normed = F.layer_norm(x, (dim,), block.feed_forward_norm.weight, block.feed_forward_norm.bias, 1e-5)
        w3, w4 = block.feed_forward.expand.weight.split(4 * dim)
        transformed = (F.silu(normed @ w3.T) * (normed @ w4.T)) @ block.feed_forward.contract.weight.T
        gate = torch.sigmoid(x @ block.feed_forward_gate.weight.T + block.feed_forward_gate.bias)
        x = x + gate * transformed
    return torch.cat([x[i, :length] for i, length in enumerate(lengths.tolist())])


def literal_decoder(model: Decoder, batch: Batch, max_length: int, config: DecoderConfig) -> Tensor:
    """Decoder.encode on a padded grid; rotary positions as products of complex numbers; [num_tokens, dim]."""
    lengths = batch.offsets.diff()
    ids = padded(batch.items, batch.offsets, max_length)
    dim, num_heads, num_pairs = config.dim, config.num_heads, config.dim // config.num_heads // 2
    place = torch.arange(max_length, dtype=torch.float64)

    def rms_norm(values: Tensor, weight: Tensor) -> Tensor:
        return values / (values.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def turned(heads: Tensor) -> Tensor:
        angles = place[:, None] * config.rope_base ** (-torch.arange(num_pairs, dtype=torch.float64) / num_pairs)
        pairs = torch.complex(heads[..., :num_pairs], heads[..., num_pairs:]) * torch.exp(1j * angles)[:, None]
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    x = F.embedding(ids, model.item_table.weight) * dim**0.5
    future = torch.ones(max_length, max_length, dtype=torch.bool).triu(1)
    for block in model.blocks:
        heads = rms_norm(x, block.attention_norm.weight) @ block.query_key_value.weight.T
        heads = heads.view(*ids.shape, -1, 2 * num_pairs)
        q, k = turned(heads[:, :, :num_heads]), turned(heads[:, :, num_heads : num_heads + config.key_value_heads])
        v = heads[:, :, num_heads + config.key_value_heads :]
        outputs = []
        for head in range(num_heads):
            shared = head * config.key_value_heads // num_heads
            scores = torch.einsum("bnd,bmd->bnm", q[:, :, head], k[:, :, shared]) / (2 * num_pairs) ** 0.5
            outputs.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[:, :, shared])
        x = x + torch.cat(outputs, dim=-1) @ block.attention_output.weight.T
        normed = rms_norm(x, block.feed_forward_norm.weight)
        gate, up = block.feed_forward.expand.weight.split(config.feed_forward_dim)
        x = x + (F.silu(normed @ gate.T) * (normed @ up.T)) @ block.feed_forward.contract.weight.T
    x = rms_norm(x, model.norm.weight)
    return torch.cat([x[i, :length] for i, length in enumerate(lengths.tolist())])
