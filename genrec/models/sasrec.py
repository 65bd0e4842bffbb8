"""SASRec: a causal transformer over item histories (Kang and McAuley, 2018), in its pre-norm form; and eSASRec.

A block is x + attention(norm(x)), then x + feed_forward(norm(x)), with a last norm before scoring. The first SASRec
code normalises the query alone and adds the attention to that normalised query; docs/models.md says why we do not.
eSASRec is the same model with other blocks: LiGR's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.config_models import ESASRecConfig, SASRecConfig
from genrec.data.batch import Batch
from genrec.models.attention import causal_softmax_attention
from genrec.models.base import Loss, SequenceModel
from genrec.models.item_table import ItemTable
from genrec.models.jagged import JaggedLayout, jagged_layout
from genrec.models.layers import NO_INPUTS, Dropout, InputLayer, Inputs, SwiGLU

NORM_EPS = 1e-8
LIGR_NORM_EPS = 1e-5


class SASRecBlock(nn.Module):
    """Self-attention and a position-wise feed-forward part, each behind a norm and beside a residual path."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        dim, inner_dim = config.dim, config.feed_forward_dim or config.dim
        self.attention_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.attention_output = nn.Linear(dim, dim)
        self.attention_dropout = config.dropout
        self.feed_forward_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.expand = nn.Linear(dim, inner_dim)
        self.contract = nn.Linear(inner_dim, dim)
        self.activation = F.relu if config.activation == "relu" else F.gelu
        self.dropout = Dropout(config.dropout)
        for linear in (self.query_key_value, self.attention_output, self.expand, self.contract):
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, layout: JaggedLayout) -> Tensor:
        """The next residual stream, [num_tokens, dim]."""
        qkv = self.query_key_value(self.attention_norm(x))
        attended = causal_softmax_attention(qkv, layout, self.attention_dropout if self.training else 0.0)
        x = x + self.attention_output(attended)
        inner = self.dropout(self.activation(self.expand(self.feed_forward_norm(x))))
        out: Tensor = x + self.dropout(self.contract(inner))
        return out


class LiGRBlock(nn.Module):
    """x + gate(x) * attention(norm(x)), then x + gate(x) * SwiGLU(norm(x)); gate(x) = sigmoid(W x + b).

    The gates read the residual stream as it is, without a norm (arXiv 2502.03417, as RecTools builds it).
    """

    def __init__(self, config: ESASRecConfig) -> None:
        super().__init__()
        dim, inner_dim = config.dim, config.feed_forward_dim or 4 * config.dim
        self.attention_norm = nn.LayerNorm(dim, eps=LIGR_NORM_EPS)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.attention_output = nn.Linear(dim, dim)
        self.attention_gate = nn.Linear(dim, dim)
        self.attention_dropout = config.dropout
        self.feed_forward_norm = nn.LayerNorm(dim, eps=LIGR_NORM_EPS)
        self.feed_forward = SwiGLU(dim, inner_dim, config.dropout)
        self.feed_forward_gate = nn.Linear(dim, dim)
        self.dropout = Dropout(config.dropout)
        for linear in (self.query_key_value, self.attention_output, self.attention_gate, self.feed_forward_gate):
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        for weight in (*self.feed_forward.expand.weight.chunk(2), self.feed_forward.contract.weight):
            nn.init.xavier_normal_(weight)

    def forward(self, x: Tensor, layout: JaggedLayout) -> Tensor:
        """The next residual stream, [num_tokens, dim]."""
        qkv = self.query_key_value(self.attention_norm(x))
        attended = causal_softmax_attention(qkv, layout, self.attention_dropout if self.training else 0.0)
        x = x + torch.sigmoid(self.attention_gate(x)) * self.dropout(self.attention_output(attended))
        transformed = self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        out: Tensor = x + torch.sigmoid(self.feed_forward_gate(x)) * transformed
        return out


class SASRec(SequenceModel):
    """Self-attentive sequential recommendation with a tied item table; it does not read times.

    With an `ESASRecConfig` its blocks are LiGR's, and no norm comes after the last one.
    """

    def __init__(
        self,
        config: SASRecConfig | ESASRecConfig,
        num_items: int,
        max_length: int,
        loss: Loss,
        inputs: Inputs = NO_INPUTS,
    ) -> None:
        super().__init__(ItemTable(num_items, config.dim, l2_normalize=config.l2_normalize), loss)
        self.reads_times = inputs.reads_times
        self.num_heads = config.num_heads
        self.input = InputLayer(max_length, config.dim, config.dropout, std=config.dim**-0.5, inputs=inputs)
        self.blocks = nn.ModuleList(
            LiGRBlock(config) if isinstance(config, ESASRecConfig) else SASRecBlock(config)
            for _ in range(config.num_layers)
        )
        self.norm = nn.Identity() if isinstance(config, ESASRecConfig) else nn.LayerNorm(config.dim, eps=NORM_EPS)

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states [num_tokens, dim]."""
        layout = jagged_layout(batch.offsets, self.num_heads)
        x = self.input(self.item_table.embed(batch.items), batch, layout)
        for block in self.blocks:
            x = block(x, layout)
        hidden: Tensor = self.norm(x)
        return hidden
