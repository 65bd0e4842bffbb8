"""HSTU: hierarchical sequential transduction units (Zhai et al., 2024, arXiv 2402.17152), the research form.

One layer, for x [num_tokens, dim], heads side by side:

    u, v, q, k = SiLU(norm(x) W)                       no bias
    a_ij       = SiLU(q_i k_j + bias_ij) / n           j <= i; n = max_length, a constant
    y          = x + W_o dropout(u * norm(a v)) + b_o  norms without weights

`attention`, `concat_ua` and `query_time` of its config choose the published variants of the last two lines.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.config_models import HSTUConfig, SiluAttentionConfig
from genrec.data.batch import Batch
from genrec.models.base import Loss, SequenceModel
from genrec.models.hstu_attention import (
    NUM_TIME_BUCKETS,
    AttentionBias,
    AttentionForm,
    causal_biased_attention,
    time_buckets,
)
from genrec.models.item_table import ItemTable
from genrec.models.jagged import JaggedLayout, jagged_layout
from genrec.models.layers import NO_INPUTS, Dropout, InputLayer, Inputs

NORM_EPS = 1e-6
INIT_STD = 0.02


class HSTULayer(nn.Module):
    """One sequential transduction unit with its own bias tables."""

    def __init__(self, config: HSTUConfig, max_length: int) -> None:
        super().__init__()
        self.dim = config.dim
        self.all_values_dim = config.num_heads * config.value_dim
        self.form = attention_form(config, max_length)
        self.concat_ua = config.concat_ua
        self.gate = nn.Linear(config.dim, self.all_values_dim, bias=False)
        self.value_query_key = nn.Linear(
            config.dim, config.num_heads * (config.value_dim + 2 * config.query_dim), bias=False
        )
        self.output = nn.Linear(self.all_values_dim * (3 if config.concat_ua else 1), config.dim)
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
        attended = causal_biased_attention(vqk, layout, bias, self.form)
        values = F.layer_norm(attended, (self.all_values_dim,), eps=NORM_EPS)
        gated = gate * values
        if self.concat_ua:
            gated = torch.cat([gate, values, gated], dim=1)
        out: Tensor = x + self.output(self.dropout(gated))
        return out


def attention_form(config: HSTUConfig, max_length: int) -> AttentionForm:
    """How the layers' scores become weights."""
    attention, scale = config.attention, config.query_dim**-0.5
    if isinstance(attention, SiluAttentionConfig):
        divisor = float(max_length) if attention.divisor == "max-length" else None
        return AttentionForm(config.query_dim, "silu", scale if attention.scale else 1.0, divisor)
    return AttentionForm(config.query_dim, "softmax", scale, 1.0)


class HSTU(SequenceModel):
    """A stack of HSTU layers; with time bias and `query_time`, a position also sees the time of what it predicts."""

    def __init__(
        self, config: HSTUConfig, num_items: int, max_length: int, loss: Loss, inputs: Inputs = NO_INPUTS
    ) -> None:
        super().__init__(ItemTable(num_items, config.dim, std=INIT_STD, l2_normalize=config.l2_normalize), loss)
        self.time_bias = config.time_bias
        self.uses_query_time = config.time_bias and config.query_time
        self.reads_times = config.time_bias or inputs.reads_times
        self.num_heads = config.num_heads
        # The published code ends with a Xavier initialisation of the position table, whatever its embedding code says.
        position_std = math.sqrt(2 / (max_length + config.dim))
        self.input = InputLayer(max_length, config.dim, config.dropout, std=position_std, inputs=inputs)
        self.layers = nn.ModuleList(HSTULayer(config, max_length) for _ in range(config.num_layers))

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states [num_tokens, dim]."""
        layout = jagged_layout(batch.offsets, self.num_heads)
        query_times = batch.target_times if self.uses_query_time else batch.times
        buckets = time_buckets(batch.times, query_times, layout) if self.time_bias else []
        x: Tensor = self.input(self.item_table.embed(batch.items), batch, layout)
        for layer in self.layers:
            x = layer(x, layout, buckets)
        return x
