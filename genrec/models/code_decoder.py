"""A decoder over codes: the blocks of decoder.py read a history and write the codes of the next item.

    history: codes    c_0 c_1 .. c_(L-1) [sep]  c_0 c_1 ..            a token for every code
                      the last token of an item predicts c_0 of the next one, c_0 predicts c_1, and so on
    history: items    x_i = sum over l of E[c_l] + E_id[item]         a token for every item
                      h = norm(blocks(x))
                      [h_i, E[c_0], .., E[c_(L-2)]] through `level_layers` blocks: place l predicts c_l

With `inputs.users` the token of the user comes before either (user_token.py). Each level has scores of its own, from a
table of its codes. `history: items` needs a fraction of the attention: with
n items and L codes, n^2 pairs and n short sequences of L against (n L)^2 pairs.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from genrec.config_models import CodeDecoderConfig
from genrec.data.batch import Batch
from genrec.losses.full import FullSoftmax
from genrec.models.code_cache import Codes, History, first_codes, read
from genrec.models.code_model import CodeModel, CodeSetting
from genrec.models.decoder import INIT_STD, NORM_EPS, DecoderBlock, run_blocks
from genrec.models.item_table import ItemTable, NoItemTable
from genrec.models.jagged import jagged_layout
from genrec.models.layers import NO_INPUTS, Dropout, InputLayer, Inputs
from genrec.models.rotary import rotation_of
from genrec.models.user_token import UserToken, before_sequences


@dataclass(frozen=True, slots=True)
class DecoderState:
    """Of each user: `hidden` [num_users, dim] for the first level, the cache of every block, and the next position.

    `positions` [num_users] is that of the first code.
    """

    hidden: Tensor
    histories: tuple[History, ...]
    codes: tuple[Codes, ...]
    positions: Tensor


class CodeDecoder(CodeModel):
    """Reads a history as codes or as items, and writes the codes of the next item; it does not read query times."""

    def __init__(
        self,
        config: CodeDecoderConfig,
        setting: CodeSetting,
        max_length: int,
        loss: FullSoftmax,
        inputs: Inputs = NO_INPUTS,
    ) -> None:
        num_items, dim = setting.ids.num_items, config.dim
        item_table = ItemTable(num_items, dim, std=INIT_STD) if config.item_ids else NoItemTable(num_items, dim)
        super().__init__(setting, item_table, loss)
        self.as_items = config.history == "items"
        self.item_ids = config.item_ids
        self.separator = self.num_codes + 1 if config.separator else None
        self.num_heads, self.head_dim = config.num_heads, dim // config.num_heads
        self.rope_base = config.rope_base
        self.recompute = config.recompute == "block"
        self.scale = math.sqrt(dim)
        self.reads_times = inputs.reads_times
        self.code_table = ItemTable(self.num_codes + int(config.separator), dim, std=INIT_STD)
        """Rows are tokens: codes of all levels, then the separator."""
        self.heads_of_levels = nn.ModuleList(ItemTable(size, dim, std=INIT_STD) for size in self.sizes)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.dropout = Dropout(config.dropout)
        users = inputs.config.users
        self.user = None if users is None else UserToken(users, dim, std=INIT_STD)
        self.input = (
            InputLayer(max_length, dim, config.dropout, std=dim**-0.5, positions=False, inputs=inputs)
            if self.as_items
            else None
        )
        self.level_blocks = nn.ModuleList()
        self.context_norm: nn.Module = nn.Identity()
        if self.as_items:
            levels = config.model_copy(update={"num_layers": config.level_layers or 1})
            self.level_blocks.extend(DecoderBlock(levels) for _ in range(levels.num_layers))
            self.context_norm = nn.RMSNorm(dim, eps=NORM_EPS)

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states [num_tokens, dim], one an event: what the codes of the next item are written from."""
        if self.as_items:
            return self._contexts(batch)
        tokens = self._history_tokens(batch)
        x, offsets, places = self._with_users(self._embed(tokens.flatten()), batch, batch.offsets * tokens.shape[1])
        return self._run(x, offsets)[places[tokens.shape[1] - 1 :: tokens.shape[1]]]

    def code_hidden(self, batch: Batch, positions: Tensor, tokens: Tensor) -> Tensor:
        """See `CodeModel`."""
        if self.as_items:
            return self._write(self._contexts(batch).index_select(0, positions), tokens)
        history = self._history_tokens(batch)
        width, tail = history.shape[1], self.num_levels - 1
        # A sequence's tokens, then the first codes of its last target, which no event of it has.
        sequences = torch.arange(batch.num_sequences, device=positions.device)
        of_event = torch.repeat_interleave(sequences, batch.offsets.diff())
        first = torch.arange(batch.num_tokens, device=positions.device) * width + of_event * tail  # [num_tokens]
        offsets = batch.offsets * width + torch.arange(batch.num_sequences + 1, device=positions.device) * tail
        stream = history.new_zeros(int(offsets[-1]))
        stream[first.unsqueeze(1) + torch.arange(width, device=first.device)] = history
        last_targets = self.tokens(batch.targets[batch.last_positions].clamp(min=0))[:, :tail]
        stream[offsets[1:].unsqueeze(1) - tail + torch.arange(tail, device=first.device)] = last_targets
        x, offsets, places = self._with_users(self._embed(stream), batch, offsets)
        written_from = first.index_select(0, positions) + width - 1
        rows = written_from.unsqueeze(1) + torch.arange(self.num_levels, device=first.device)
        return self._run(x, offsets)[places[rows]]

    def code_loss(self, hidden: Tensor, tokens: Tensor, weights: Tensor | None) -> Tensor:
        """See `CodeModel`: each level against its own codes."""
        losses = [
            self.loss(hidden[:, level], tokens[:, level] - first + 1, self._head(level), None, weights)
            for level, first in enumerate(self.first_tokens)
        ]
        return torch.stack(losses).sum()

    def start(self, batch: Batch) -> DecoderState:
        """See `CodeModel`."""
        if self.as_items:
            contexts = self._contexts(batch)[batch.last_positions]
            offsets = torch.arange(batch.num_sequences + 1, device=contexts.device)
            x, blocks = contexts, self.level_blocks
        else:
            tokens, blocks = self._history_tokens(batch), self.blocks
            x, offsets, _ = self._with_users(self._embed(tokens.flatten()), batch, batch.offsets * tokens.shape[1])
        layout = jagged_layout(offsets, self.num_heads)
        rotation = rotation_of(layout.positions, self.head_dim, self.rope_base, x.dtype)
        lengths = offsets.diff()
        places = torch.arange(int(lengths.max()), device=x.device)
        is_real = places < lengths.unsqueeze(1)  # [num_users, length]
        index = (offsets[:-1].unsqueeze(1) + places).clamp(max=int(offsets[-1]) - 1)
        hidden_part = torch.zeros(is_real.shape, dtype=x.dtype, device=x.device).masked_fill_(~is_real, -math.inf)
        histories = []
        for block in blocks:
            assert isinstance(block, DecoderBlock)
            x, (keys, values) = block.forward_keeping(x, layout, rotation)
            padded = [part[index].transpose(1, 2).contiguous() for part in (keys, values)]
            histories.append(History(padded[0], padded[1], hidden_part[:, None, None, :]))
        return DecoderState(self.norm(x)[offsets[1:] - 1], tuple(histories), (), lengths)

    def step(
        self, state: DecoderState, level: int, codes: Tensor | None, parents: Tensor | None
    ) -> tuple[Tensor, DecoderState]:
        """See `CodeModel`."""
        head = self._head(level)
        if codes is None or parents is None:
            return self.log_probabilities(state.hidden, head).unsqueeze(1), state
        num_users, width = codes.shape
        x = self._embed((codes + self.first_tokens[level - 1]).flatten())
        positions = (state.positions + level - 1).repeat_interleave(width)
        rotation = rotation_of(positions, self.head_dim, self.rope_base, x.dtype)
        kept = []
        for number, block in enumerate(self.level_blocks if self.as_items else self.blocks):
            assert isinstance(block, DecoderBlock)
            q, k, v = (part.view(num_users, width, *part.shape[1:]) for part in block.heads_of(x, rotation))
            own = state.codes[number].continued(parents, k, v) if state.codes else first_codes(k, v)
            attended = read(q, state.histories[number], own, self.head_dim**-0.5)
            x = block.after_attention(x, attended.flatten(0, 1))
            kept.append(own)
        found = self.log_probabilities(self.norm(x), head).view(num_users, width, -1)
        return found, replace(state, codes=tuple(kept))

    def _head(self, level: int) -> ItemTable:
        head = self.heads_of_levels[level]
        assert isinstance(head, ItemTable)
        return head

    def _history_tokens(self, batch: Batch) -> Tensor:
        """Tokens of every event, [num_tokens, num_levels], or one more with separators."""
        tokens = self.tokens(batch.items)
        if self.separator is None:
            return tokens
        return torch.cat([tokens, tokens.new_full((len(tokens), 1), self.separator)], dim=1)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Input vectors [num_rows, dim] of `tokens` [num_rows]."""
        vectors: Tensor = self.dropout(self.code_table.embed(tokens) * self.scale)
        return vectors

    def _with_users(self, x: Tensor, batch: Batch, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows and borders of sequences with their user's token first, where users are read; and where `x` is then."""
        if self.user is None:
            return x, offsets, torch.arange(len(x), device=x.device)
        return before_sequences(self.dropout(self.user(batch) * self.scale), x, offsets)

    def _run(self, x: Tensor, offsets: Tensor, blocks: nn.ModuleList | None = None) -> Tensor:
        """Hidden states of sequences with borders `offsets`, through the blocks that write codes."""
        layout = jagged_layout(offsets, self.num_heads)
        rotation = rotation_of(layout.positions, self.head_dim, self.rope_base, x.dtype)
        blocks = self.blocks if blocks is None else blocks
        hidden: Tensor = self.norm(run_blocks(blocks, x, layout, rotation, recompute=self.recompute))
        return hidden

    def _contexts(self, batch: Batch) -> Tensor:
        """history: items. What has been read up to each event, [num_tokens, dim]."""
        assert self.input is not None
        layout = jagged_layout(batch.offsets, self.num_heads)
        tokens = self.tokens(batch.items)
        vectors = self.code_table.embed(tokens.flatten()).view(*tokens.shape, -1).sum(dim=1)
        if self.item_ids:
            vectors = vectors + self.item_table.embed(batch.items)
        x, offsets, places = self._with_users(self.input(vectors, batch, layout), batch, batch.offsets)
        if self.user is not None:
            layout = jagged_layout(offsets, self.num_heads)
        rotation = rotation_of(layout.positions, self.head_dim, self.rope_base, x.dtype)
        contexts: Tensor = self.context_norm(run_blocks(self.blocks, x, layout, rotation, recompute=self.recompute))
        return contexts if self.user is None else contexts.index_select(0, places)

    def _write(self, contexts: Tensor, tokens: Tensor) -> Tensor:
        """history: items. Hidden states [num_targets, num_levels, dim] of the codes that follow each context."""
        num_targets, num_levels = tokens.shape
        before = self._embed(tokens[:, :-1].flatten()).view(num_targets, num_levels - 1, -1)
        x = torch.cat([contexts.unsqueeze(1), before.to(contexts.dtype)], dim=1).flatten(0, 1)
        offsets = torch.arange(num_targets + 1, device=contexts.device) * num_levels
        return self._run(x, offsets, self.level_blocks).view(num_targets, num_levels, -1)
