"""TIGER: from the codes of a history to those of the next item (Rajput et al., 2023, arXiv 2305.05065).

    encoder    [user,] the codes of the newest `max_history` items, every token reads every other
    decoder    [start, c_0, .., c_(L-2)] predicts c_0, .., c_(L-1), and reads the encoder's output
    scores     (h / sqrt(dim)) E^T over the codes of all levels; E is also what encoder and decoder read

The encoder may read ahead, so every target has an encoded history of its own: a window of n events is n histories, of
1, 2, .. n events. That is its authors' training on every prefix of a sequence, and a batch means what it means for
every other model. `inputs.users` puts the user's token first (user_token.py).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from genrec.config_models import TigerConfig
from genrec.data.batch import Batch
from genrec.losses.full import FullSoftmax
from genrec.models.code_cache import Codes, History, first_codes, read
from genrec.models.code_model import CodeModel, CodeSetting
from genrec.models.code_t5 import NORM_EPS, DecoderBlock, EncoderBlock, Histories, PositionBias
from genrec.models.item_table import ItemTable, NoItemTable
from genrec.models.layers import NO_INPUTS, Dropout, Inputs
from genrec.models.user_token import UserToken, before_sequences


@dataclass(frozen=True, slots=True)
class TigerState:
    """Keys and values of the users' encoded histories for every block, and those of the codes so far.

    `bias` [num_heads, num_levels, num_levels] is the decoder's.
    """

    histories: tuple[History, ...]
    codes: tuple[Codes, ...]
    bias: Tensor


class Tiger(CodeModel):
    """T5 over codes; of other inputs it reads the user alone."""

    def __init__(
        self, config: TigerConfig, setting: CodeSetting, loss: FullSoftmax, inputs: Inputs = NO_INPUTS
    ) -> None:
        super().__init__(setting, NoItemTable(setting.ids.num_items, config.dim), loss)
        self.max_history = config.max_history
        self.num_heads = config.num_heads
        self.score_scale = config.dim**-0.5
        self.start_token = self.num_codes + 1
        self.code_table = ItemTable(self.num_codes + 1, config.dim)
        """Rows are tokens: codes of all levels, then the one that a decoder begins with."""
        self.code_table.num_train_items = self.num_codes  # the last one is read, never written
        with torch.no_grad():
            nn.init.normal_(self.code_table.weight)
            self.code_table.weight[0].zero_()
        self.dropout = Dropout(config.dropout)
        users = inputs.config.users
        self.user = None if users is None else UserToken(users, config.dim, std=1.0)
        self.encoder_bias = PositionBias(config, both_ways=True)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_layers))
        self.encoder_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.decoder_bias = PositionBias(config, both_ways=False)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.decoder_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)

    def code_hidden(self, batch: Batch, positions: Tensor, tokens: Tensor) -> Tensor:
        """See `CodeModel`."""
        encoded, histories = self._encode(batch, positions)
        start = tokens.new_full((len(tokens), 1), self.start_token)
        x = self._embed(torch.cat([start, tokens[:, :-1]], dim=1))  # [num_targets, num_levels, dim]
        bias = self.decoder_bias(self.num_levels)
        for block in self.decoder:
            x = block(x, encoded, histories, bias)
        hidden: Tensor = self.dropout(self.decoder_norm(x))
        return hidden

    def code_loss(self, hidden: Tensor, tokens: Tensor, weights: Tensor | None) -> Tensor:
        """See `CodeModel`: every level against the codes of all levels."""
        per_token = None if weights is None else weights.repeat_interleave(self.num_levels)
        rows = hidden.flatten(0, 1) * self.score_scale
        loss: Tensor = self.loss(rows, tokens.flatten(), self.code_table, None, per_token)
        return loss

    def start(self, batch: Batch) -> TigerState:
        """See `CodeModel`."""
        encoded = self._encode(batch, batch.last_positions)[0]
        lengths = self._lengths(batch, batch.last_positions) * self.num_levels + int(self.user is not None)
        ends = lengths.cumsum(0)
        places = torch.arange(int(lengths.max()), device=ends.device)
        is_padding = places >= lengths.unsqueeze(1)
        index = ((ends - lengths).unsqueeze(1) + places).clamp(max=len(encoded) - 1)
        hidden = torch.zeros(is_padding.shape, dtype=encoded.dtype, device=ends.device)
        hidden = hidden.masked_fill_(is_padding, -float("inf"))[:, None, None, :]
        kept = []
        for block in self.decoder:
            assert isinstance(block, DecoderBlock)
            keys, values = (part[index].transpose(1, 2) for part in block.cross_attention.memory_of(encoded))
            kept.append(History(keys.contiguous(), values.contiguous(), hidden))
        return TigerState(tuple(kept), (), self.decoder_bias(self.num_levels))

    def step(
        self, state: TigerState, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> tuple[Tensor, TigerState]:
        """See `CodeModel`."""
        if codes is None or parents is None:
            users = state.histories[0].keys
            x = self._embed(torch.full((users.shape[0], 1), self.start_token, device=users.device))
            parents = torch.zeros(users.shape[0], 1, dtype=torch.int64, device=users.device)
        else:
            x = self._embed(codes + self.first_tokens[level - 1])  # [num_users, width, dim]
        bias = state.bias[:, level, : level + 1]
        kept = []
        for number, block in enumerate(self.decoder):
            assert isinstance(block, DecoderBlock)
            q, k, v = block.attention.heads_of(x)
            own = state.codes[number].continued(parents, k, v) if state.codes else first_codes(k, v)
            x = block.attention.after_attention(x, read(q, None, own, 1.0, bias))
            cross = block.cross_attention
            x = cross.after_attention(x, read(cross.queries_of(x), state.histories[number], None, 1.0))
            x = block.feed_forward(x)
            kept.append(own)
        rows = self.decoder_norm(x) * self.score_scale
        found = self.log_probabilities(rows.flatten(0, 1), self.code_table).view(*rows.shape[:2], -1)
        first = self.first_tokens[level] - 1
        return found[:, :, first : first + self.sizes[level]], replace(state, codes=tuple(kept))

    def _lengths(self, batch: Batch, positions: Tensor) -> Tensor:
        """Events that are read for the target after each position, [num_targets]."""
        return (positions - batch.offsets[_sequences(batch, positions)] + 1).clamp(max=self.max_history)

    def _encode(self, batch: Batch, positions: Tensor) -> tuple[Tensor, Histories]:
        """The encoded history of the target after each position, one after another, and their borders."""
        lengths = self._lengths(batch, positions)
        ends = lengths.cumsum(0)
        firsts = positions + 1 - lengths  # the oldest event of each
        places = torch.arange(int(ends[-1]), device=positions.device)
        events = places + torch.repeat_interleave(firsts - (ends - lengths), lengths)
        x = self._embed(self.tokens(batch.items.index_select(0, events)).flatten())
        offsets = torch.cat([ends.new_zeros(1), ends]) * self.num_levels
        if self.user is not None:
            users = self.dropout(self.user(batch)).index_select(0, _sequences(batch, positions))
            x, offsets, _ = before_sequences(users, x, offsets)
        histories = Histories.of(offsets, self.num_heads, x.dtype)
        bias = self.encoder_bias(histories.layout.max_length)
        for block in self.encoder:
            x = block(x, histories, bias)
        return self.dropout(self.encoder_norm(x)), histories

    def _embed(self, tokens: Tensor) -> Tensor:
        """Input vectors [..., dim] of `tokens` [...]."""
        vectors: Tensor = self.dropout(self.code_table.embed(tokens.flatten()))
        return vectors.view(*tokens.shape, -1)


def _sequences(batch: Batch, positions: Tensor) -> Tensor:
    """The sequence that each position is in, [num_targets]."""
    return torch.searchsorted(batch.offsets, positions, right=True) - 1
