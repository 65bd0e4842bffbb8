"""The parts of T5 that TIGER is made of (Raffel et al., 2020, arXiv 1910.10683; the first version, with ReLU).

    norm           x / sqrt(mean(x^2) + 1e-6) * g, before every part; no biases anywhere
    attention      softmax(q k^T + b[bucket(j - i)]) v, not scaled: the weights of q begin small enough
    feed-forward   W_o dropout(ReLU(W_i x))
    residual       x + dropout(part(norm(x)))

The biases b belong to the encoder's and to the decoder's self-attention, one table each, shared by all layers.
Sequences are jagged; attention sees them in the groups of a `JaggedLayout`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.config_models import TigerConfig
from genrec.models.jagged import Group, JaggedLayout, jagged_layout
from genrec.models.layers import Dropout

NORM_EPS = 1e-6
NUM_BUCKETS = 32
MAX_DISTANCE = 128


def buckets_of(distances: Tensor, *, both_ways: bool) -> Tensor:
    """The bucket of each distance (key place - query place): T5's relative positions, in `NUM_BUCKETS`.

    Half of the buckets are for one distance each, the others grow with its logarithm up to `MAX_DISTANCE`. `both_ways`
    gives the future half of them; else the future counts as distance 0, and a mask must hide it.
    """
    num_buckets = NUM_BUCKETS // 2 if both_ways else NUM_BUCKETS
    is_future = (distances > 0).long() * num_buckets if both_ways else torch.zeros_like(distances)
    distance = distances.abs() if both_ways else (-distances).clamp(min=0)
    exact = num_buckets // 2
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact)
    far = (exact + (growth * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return is_future + torch.where(distance < exact, distance, far)


class PositionBias(nn.Module):
    """A learned number for each head and bucket of distances."""

    def __init__(self, config: TigerConfig, *, both_ways: bool) -> None:
        super().__init__()
        self.both_ways = both_ways
        self.table = nn.Embedding(NUM_BUCKETS, config.num_heads)
        nn.init.normal_(self.table.weight, std=config.dim**-0.5)

    def forward(self, length: int) -> Tensor:
        """Biases [num_heads, length, length] of queries i (rows) and keys j; -inf for j > i unless `both_ways`."""
        places = torch.arange(length, device=self.table.weight.device)
        distances = places - places.unsqueeze(1)
        bias: Tensor = self.table(buckets_of(distances, both_ways=self.both_ways)).permute(2, 0, 1)
        return bias if self.both_ways else bias.masked_fill(distances > 0, -math.inf)


@dataclass(frozen=True, slots=True)
class Histories:
    """Borders of jagged sequences as attention sees them; made once a batch, shared by all layers.

    layout   of the tokens
    order    [num_sequences] the sequence behind each place of the layout's groups
    hidden   for each group -inf where a shorter sequence is padded, [num_sequences, 1, 1, length]; else 0
    """

    layout: JaggedLayout
    order: Tensor
    hidden: tuple[Tensor, ...]

    @classmethod
    def of(cls, offsets: Tensor, num_heads: int, dtype: torch.dtype) -> "Histories":
        """Those with borders `offsets` [num_sequences + 1]."""
        layout = jagged_layout(offsets, num_heads)
        order, hidden = [], []
        for group in layout.groups:
            firsts = torch.arange(group.num_sequences, device=offsets.device) * group.length + group.start
            members = torch.searchsorted(offsets, layout.slot_tokens[firsts], right=True) - 1
            lengths = offsets[members + 1] - offsets[members]
            is_padding = torch.arange(group.length, device=offsets.device) >= lengths.unsqueeze(1)
            mask = torch.zeros(is_padding.shape, dtype=dtype, device=offsets.device)
            order.append(members)
            hidden.append(mask.masked_fill_(is_padding, -math.inf)[:, None, None, :])
        return cls(layout, torch.cat(order), tuple(hidden))

    def heads(self, slots: Tensor, group: Group) -> Tensor:
        """A group's part of padded slots, [num_sequences, num_heads, length, width]."""
        return self.layout.block(slots, group).view(group.num_sequences, self.layout.num_heads, group.length, -1)


class SelfAttention(nn.Module):
    """Queries, keys and values of the same tokens."""

    def __init__(self, config: TigerConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.query, self.key, self.value = (nn.Linear(config.dim, inner, bias=False) for _ in range(3))
        self.output = nn.Linear(inner, config.dim, bias=False)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.query.weight, std=(config.dim * config.head_dim) ** -0.5)
        nn.init.normal_(self.key.weight, std=config.dim**-0.5)
        nn.init.normal_(self.value.weight, std=config.dim**-0.5)
        nn.init.normal_(self.output.weight, std=inner**-0.5)

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [..., num_heads, head_dim] of `x` [..., dim]."""
        normed = self.norm(x)
        q, k, v = (part(normed).unflatten(-1, (self.num_heads, -1)) for part in (self.query, self.key, self.value))
        return q, k, v

    def of_histories(self, x: Tensor, histories: Histories, bias: Tensor) -> Tensor:
        """The next residual stream [num_tokens, dim]; every token reads all of its own sequence."""
        layout = histories.layout
        slots = layout.pad(torch.cat(self.heads_of(x), dim=2).flatten(1))
        outputs = []
        for group, hidden in zip(layout.groups, histories.hidden, strict=True):
            q, k, v = histories.heads(slots, group).chunk(3, dim=3)
            scores = q @ k.mT + (bias[:, : group.length, : group.length] + hidden)
            outputs.append((self.dropout(scores.softmax(dim=3)) @ v).flatten(0, 2))
        return self.after_attention(x, layout.unpad(torch.cat(outputs)))

    def of_codes(self, x: Tensor, bias: Tensor) -> Tensor:
        """The next residual stream of short sequences of one length, [num_sequences, length, dim]."""
        q, k, v = (part.transpose(1, 2) for part in self.heads_of(x))  # [num_sequences, num_heads, length, head_dim]
        weights = self.dropout((q @ k.mT + bias).softmax(dim=3))
        return self.after_attention(x, (weights @ v).transpose(1, 2).flatten(2))

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """`x` [..., dim] and what its heads have read [..., num_heads * head_dim], put together."""
        out: Tensor = x + self.dropout(self.output(attended))
        return out


class CrossAttention(SelfAttention):
    """Queries of the decoder; keys and values of what the encoder has read, without position biases."""

    def memory_of(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [num_tokens, num_heads, head_dim] of `encoded` [num_tokens, dim]."""
        k, v = (part(encoded).unflatten(1, (self.num_heads, -1)) for part in (self.key, self.value))
        return k, v

    def queries_of(self, x: Tensor) -> Tensor:
        """Queries [..., num_heads, head_dim] of `x` [..., dim]."""
        queries: Tensor = self.query(self.norm(x)).unflatten(-1, (self.num_heads, -1))
        return queries

    def of_memory(self, x: Tensor, encoded: Tensor, histories: Histories) -> Tensor:
        """The next residual stream [num_sequences, length, dim]; each sequence reads its own of `histories`."""
        layout = histories.layout
        slots = layout.pad(torch.cat(self.memory_of(encoded), dim=2).flatten(1))
        queries = self.queries_of(x).index_select(0, histories.order).transpose(1, 2)
        outputs, first = [], 0
        for group, hidden in zip(layout.groups, histories.hidden, strict=True):
            k, v = histories.heads(slots, group).chunk(2, dim=3)
            q = queries[first : first + group.num_sequences]  # [num_sequences, num_heads, length, head_dim]
            outputs.append(self.dropout((q @ k.mT + hidden).softmax(dim=3)) @ v)
            first += group.num_sequences
        attended = torch.cat(outputs).index_select(0, histories.order.argsort())
        return self.after_attention(x, attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """x + dropout(W_o dropout(ReLU(W_i norm(x))))."""

    def __init__(self, config: TigerConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.expand = nn.Linear(config.dim, config.feed_forward_dim, bias=False)
        self.contract = nn.Linear(config.feed_forward_dim, config.dim, bias=False)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.expand.weight, std=config.dim**-0.5)
        nn.init.normal_(self.contract.weight, std=config.feed_forward_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The next residual stream, [..., dim]."""
        inner = self.dropout(F.relu(self.expand(self.norm(x))))
        out: Tensor = x + self.dropout(self.contract(inner))
        return out


class EncoderBlock(nn.Module):
    """Attention over a whole history, and a feed-forward part."""

    def __init__(self, config: TigerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, histories: Histories, bias: Tensor) -> Tensor:
        """The next residual stream, [num_tokens, dim]."""
        out: Tensor = self.feed_forward(self.attention.of_histories(x, histories, bias))
        return out


class DecoderBlock(nn.Module):
    """Causal attention over the codes so far, attention over the encoded history, and a feed-forward part."""

    def __init__(self, config: TigerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, encoded: Tensor, histories: Histories, bias: Tensor) -> Tensor:
        """The next residual stream, [num_sequences, num_levels, dim]."""
        x = self.attention.of_codes(x, bias)
        out: Tensor = self.feed_forward(self.cross_attention.of_memory(x, encoded, histories))
        return out
