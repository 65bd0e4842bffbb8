"""HSTU: hierarchical sequential transduction units (Zhai et al., 2024, arXiv 2402.17152), the research form.

One layer, for x [num_tokens, dim], heads side by side:

    u, v, q, k = SiLU(norm(x) W)                       no bias
    a_ij       = SiLU(q_i k_j + bias_ij) / n           j <= i; n = max_length, a constant
    y          = x + W_o dropout(u * norm(a v)) + b_o  norms without weights
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.config import HSTUConfig
from genrec.data.batch import Batch
from genrec.models.base import Loss, SequenceModel
from genrec.models.item_table import ItemTable
from genrec.models.jagged import JaggedLayout, jagged_layout
from genrec.models.layers import NO_INPUTS, Dropout, InputLayer, Inputs
from genrec.models.silu_attention import NUM_TIME_BUCKETS, AttentionBias, causal_silu_attention, time_buckets

NORM_EPS = 1e-6
INIT_STD = 0.02


class HSTULayer(nn.Module):
    """One sequential transduction unit with its own bias tables."""

    def __init__(self, config: HSTUConfig, max_length: int) -> None:
        super().__init__()
        self.dim = config.dim
        self.query_dim = config.query_dim
        self.all_values_dim = config.num_heads * config.value_dim
        self.max_length = max_length
        self.gate = nn.Linear(config.dim, self.all_values_dim, bias=False)
        self.value_query_key = nn.Linear(
            config.dim, config.num_heads * (config.value_dim + 2 * config.query_dim), bias=False
        )
        self.output = nn.Linear(self.all_values_dim, config.dim)
        self.dropout = Dropout(config.dropout)
        self.time_bias = nn.Parameter(torch.empty(NUM_TIME_BUCKETS)) if config.time_bias else None
        self.position_bias = nn.Parameter(torch.empty(max_length)) if config.position_bias else None
        for weight in (self.gate.weight, self.value_query_key.weight, self.time_bias, self.position_bias):
            if weight is not None:
                nn.init.normal_(weight, std=INIT_STD)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, x: Tensor, layout: JaggedLayout, buckets: list[Tensor]) -> Tensor:
        """The next residual stream, [num_tokens, dim]."""
        normed = F.layer_norm(x, (self.dim,), eps=NORM_EPS)
        gate = F.silu(self.gate(normed))
        vqk = F.silu(self.value_query_key(normed))
        bias = AttentionBias(self.time_bias, self.position_bias, buckets)
        attended = causal_silu_attention(vqk, layout, bias, self.query_dim, self.max_length)
        gated = gate * F.layer_norm(attended, (self.all_values_dim,), eps=NORM_EPS)
        out: Tensor = x + self.output(self.dropout(gated))
        return out


class HSTU(SequenceModel):
    """A stack of HSTU layers; with the time bias, each position also sees the time of the event it predicts."""

    def __init__(
        self, config: HSTUConfig, num_items: int, max_length: int, loss: Loss, inputs: Inputs = NO_INPUTS
    ) -> None:
        super().__init__(ItemTable(num_items, config.dim, std=INIT_STD, l2_normalize=config.l2_normalize), loss)
        self.uses_query_time = config.time_bias
        self.num_heads = config.num_heads
        # The published code ends with a Xavier initialisation of the position table, whatever its embedding code says.
        position_std = math.sqrt(2 / (max_length + config.dim))
        self.input = InputLayer(max_length, config.dim, config.dropout, position_std=position_std, inputs=inputs)
        self.layers = nn.ModuleList(HSTULayer(config, max_length) for _ in range(config.num_layers))

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states [num_tokens, dim]."""
        layout = jagged_layout(batch.offsets, self.num_heads)
        buckets = time_buckets(batch.times, batch.target_times, layout) if self.uses_query_time else []
        x: Tensor = self.input(self.item_table.embed(batch.items), batch, layout)
        for layer in self.layers:
            x = layer(x, layout, buckets)
        return x
