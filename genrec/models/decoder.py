"""A plain decoder, as language models are built: RMSNorm, rotary positions, SwiGLU, grouped queries, no biases.

    x = dropout(sqrt(dim) * E[item])
    x = x + dropout(W_o attention(rotate(q), rotate(k), v))       q, k, v = W norm(x)
    x = x + dropout(W_c (SiLU(W_g norm(x)) * W_u norm(x)))
    scores = norm(x) E^T

It knows positions by rotation alone. code_decoder.py runs its blocks over codes of items.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genrec.config_models import DecoderConfig, DecoderLayersConfig
from genrec.data.batch import Batch
from genrec.models.attention import causal_softmax_attention
from genrec.models.base import Loss, SequenceModel
from genrec.models.item_table import ItemTable
from genrec.models.jagged import JaggedLayout, jagged_layout
from genrec.models.layers import NO_INPUTS, Dropout, InputLayer, Inputs, SwiGLU
from genrec.models.rotary import Rotation, rotate, rotation_of

NORM_EPS = 1e-6
INIT_STD = 0.02


def feed_forward_dim_of(config: DecoderLayersConfig) -> int:
    """Width inside the feed-forward part. 8/3 of `dim` gives SwiGLU's three matrices the size of two of 4 dim."""
    return config.feed_forward_dim or math.ceil(8 * config.dim / 3 / 64) * 64


class DecoderBlock(nn.Module):
    """Grouped-query attention and SwiGLU, each behind a norm and beside a residual path."""

    def __init__(self, config: DecoderLayersConfig) -> None:
        super().__init__()
        dim, inner_dim = config.dim, feed_forward_dim_of(config)
        self.num_heads, self.num_key_value_heads = config.num_heads, config.key_value_heads
        self.head_dim = dim // config.num_heads
        self.attention_norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.query_key_value = nn.Linear(
            dim, (config.num_heads + 2 * config.key_value_heads) * self.head_dim, bias=False
        )
        self.attention_output = nn.Linear(dim, dim, bias=False)
        self.feed_forward_norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.feed_forward = SwiGLU(dim, inner_dim, dropout=0.0)
        self.attention_dropout = config.dropout
        self.dropout = Dropout(config.dropout)
        # Variance 1 is kept through a matrix, and the 2 * num_layers parts that are added up share it (GPT-2).
        shared = (2 * config.num_layers) ** -0.5
        nn.init.normal_(self.query_key_value.weight, std=dim**-0.5)
        nn.init.normal_(self.attention_output.weight, std=shared * dim**-0.5)
        nn.init.normal_(self.feed_forward.expand.weight, std=dim**-0.5)
        nn.init.normal_(self.feed_forward.contract.weight, std=shared * inner_dim**-0.5)

    def forward(self, x: Tensor, layout: JaggedLayout, rotation: Rotation) -> Tensor:
        """The next residual stream, [num_tokens, dim]."""
        return self.forward_keeping(x, layout, rotation)[0]

    def forward_keeping(
        self, x: Tensor, layout: JaggedLayout, rotation: Rotation
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `forward`, with the keys and values [num_tokens, num_key_value_heads, head_dim] of this layer."""
        q, k, v = self.heads_of(x, rotation)
        qkv = torch.stack([q, self._for_each_query(k), self._for_each_query(v)], dim=2).flatten(1)
        attended = causal_softmax_attention(qkv, layout, self.attention_dropout if self.training else 0.0)
        return self.after_attention(x, attended), (k, v)

    def heads_of(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [num_tokens, num_heads, head_dim], and keys and values of the heads that they share."""
        heads = self.query_key_value(self.attention_norm(x)).unflatten(1, (-1, self.head_dim))
        q, k, v = heads.split([self.num_heads, self.num_key_value_heads, self.num_key_value_heads], dim=1)
        return rotate(q, rotation), rotate(k, rotation), v

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """The next residual stream from this layer's input and what its heads have read, both [num_tokens, dim]."""
        x = x + self.dropout(self.attention_output(attended))
        out: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return out

    def _for_each_query(self, heads: Tensor) -> Tensor:
        """Keys or values [num_tokens, num_heads, head_dim]: neighbouring queries share a head."""
        repeats = self.num_heads // self.num_key_value_heads
        return heads.unsqueeze(2).expand(-1, -1, repeats, -1).flatten(1, 2)


class Decoder(SequenceModel):
    """A stack of decoder blocks with a tied item table; it does not read times."""

    def __init__(
        self, config: DecoderConfig, num_items: int, max_length: int, loss: Loss, inputs: Inputs = NO_INPUTS
    ) -> None:
        super().__init__(ItemTable(num_items, config.dim, std=INIT_STD, l2_normalize=config.l2_normalize), loss)
        self.reads_times = inputs.reads_times
        self.num_heads, self.head_dim = config.num_heads, config.dim // config.num_heads
        self.rope_base = config.rope_base
        self.recompute = config.recompute == "block"
        self.input = InputLayer(
            max_length, config.dim, config.dropout, std=config.dim**-0.5, positions=False, inputs=inputs
        )
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=NORM_EPS)

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states [num_tokens, dim]."""
        layout = jagged_layout(batch.offsets, self.num_heads)
        x = self.input(self.item_table.embed(batch.items), batch, layout)
        rotation = rotation_of(layout.positions, self.head_dim, self.rope_base, x.dtype)
        hidden: Tensor = self.norm(run_blocks(self.blocks, x, layout, rotation, recompute=self.recompute))
        return hidden


def run_blocks(
    blocks: nn.ModuleList, x: Tensor, layout: JaggedLayout, rotation: Rotation, *, recompute: bool
) -> Tensor:
    """The residual stream after the blocks, [num_tokens, dim]; `recompute` keeps a block's input alone."""
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            # It puts torch's generator back for the second pass, so that the same elements are dropped.
            x = checkpoint(block, x, layout, rotation, use_reentrant=False)
        else:
            x = block(x, layout, rotation)
    return x
