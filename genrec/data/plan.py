"""The training order (contract 3): a pure function of (data set, batch rule, seed, epoch), whatever the workers.

1. An epoch is a seeded permutation of the data set's row groups, or a mixture of its parts (group_order.py).
2. A chunk is a run of that order with about `batch.chunk_tokens` tokens; it is read and shuffled as a whole.
3. A chunk's windows (windows.py) are packed into whole steps (packing.py), so a step never crosses a chunk, and an
   epoch is a whole number of steps. Steps are numbered through all epochs: the cursor of a run is one number, the next
   step.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from genrec.config import ExperimentConfig, GlobalTimeSplit, Split
from genrec.data.group_order import MixedOrder, PartGroups, Visit, parts_of
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.packing import IntArray, PackingRule, num_steps
from genrec.data.schema import Role
from genrec.data.sequence_files import read_row_group
from genrec.data.split import history_ends
from genrec.data.stored_set import whole_place
from genrec.data.target_actions import EVERY_TARGET, TargetRule, target_rule
from genrec.data.windows import WindowRule, uniform_by_user, window_lengths
from genrec.errors import ConfigError, DataError

MIN_STEPS_PER_CHUNK = 32
"""A chunk is a whole number of steps, so its last one is half empty on average: 1.6% of 32 steps."""

MIN_BLOCK_TOKENS = 131_072
"""Small steps go to the workers in larger blocks: handing a block over costs Ray Data 18 ms of processor time."""


class GroupVisit(NamedTuple):
    """A row group as a chunk reads it: file, number in the file, and which pass over its part this is."""

    path: str
    group: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of row groups that is read, shuffled and packed together."""

    epoch: int
    index: int
    first_step: int
    num_steps: int
    epoch_first_step: int
    epoch_num_steps: int
    num_tokens: int
    row_groups: tuple[GroupVisit, ...]

    @property
    def end_step(self) -> int:
        """The first step after the chunk."""
        return self.first_step + self.num_steps


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """The little that a worker or a map task needs to rebuild its part of the plan."""

    folder: str
    content_hash: str
    split: Split
    seed: int
    window: WindowRule
    rule: PackingRule
    targets: TargetRule = EVERY_TARGET
    dealt_anew: int | None = None
    """Micro-batches that the windows of a step are dealt into, where not as many as `rule` packs the steps for."""
    pool_size: int = 0
    """Targets of a step that all its micro-batches bring along as negatives."""
    trained_as: Role = "train"
    """The role whose history is trained on: train, or test in a refit, which is all that comes before a test target."""

    @property
    def parts(self) -> int:
        """Micro-batches of a step."""
        return self.dealt_anew or self.rule.micro_batches_per_step

    def generator(self, *salt: int) -> np.random.Generator:
        """A generator that depends on the data set, the seed and `salt` alone."""
        return np.random.default_rng([self._key, self.seed, *salt])

    def uniform(self, users: npt.NDArray[np.integer], epoch: int) -> npt.NDArray[np.float64] | None:
        """The draws of stochastic length for `users` in an epoch; None when the window rule draws nothing."""
        return uniform_by_user(self._key ^ self.seed, epoch, users) if self.window.drawn_by_user else None

    @property
    def _key(self) -> int:
        return int.from_bytes(hashlib.sha256(self.content_hash.encode()).digest()[:8], "little")


class RowGroupUsers(NamedTuple):
    """A row group of the set, and what the plan knows of its users."""

    path: str
    group: int
    tokens: IntArray
    """[num_users] training tokens of each user: its training events but one."""
    users: IntArray | None
    """[num_users] their indices, when the window rule asks who they are."""


class _ChunkSize(NamedTuple):
    """A chunk before its steps are numbered."""

    visits: tuple[Visit, ...]
    num_steps: int
    num_tokens: int


class Plan:
    """Chunks in training order, epoch after epoch."""

    def __init__(
        self,
        spec: PlanSpec,
        chunk_tokens: int,
        row_groups: tuple[RowGroupUsers, ...],
        parts: tuple[PartGroups, ...],
        *,
        mixed: bool,
    ) -> None:
        """`mixed` takes the row groups of `parts` by their shares; else an epoch has each row group once."""
        self.spec = spec
        self.row_groups = row_groups
        self.parts = parts
        self.chunk_tokens = max(chunk_tokens, MIN_STEPS_PER_CHUNK * spec.rule.tokens_per_step)
        self._steps: dict[tuple[int, ...], int] = {}
        self._epochs: list[list[_ChunkSize]] = []
        self._mixed: MixedOrder | None = None
        if mixed:
            self._mixed = MixedOrder(parts, self.visit_tokens, spec.generator, self.tokens_per_epoch)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of the set's windows in its first epoch; stochastic length makes the others a little different."""
        return sum(self.visit_tokens((group, 0)) for group in range(len(self.row_groups)))

    def visit_lengths(self, visit: Visit) -> IntArray:
        """Window lengths of a row group in a pass over its part, [num_windows]."""
        group, number = visit
        _, _, tokens, users = self.row_groups[group]
        uniform = None if users is None else self.spec.uniform(users, number)
        return window_lengths(self.spec.window, tokens, uniform)

    def visit_tokens(self, visit: Visit) -> int:
        """Tokens of a row group's windows in a pass over its part."""
        return int(self.visit_lengths(visit).sum())

    def epoch(self, epoch: int, first_step: int = 0) -> list[Chunk]:
        """The chunks of one epoch, whose steps are numbered from `first_step`."""
        sizes = self._sizes(epoch)
        total = sum(size.num_steps for size in sizes)
        result, step = [], first_step
        for index, (visits, steps, tokens) in enumerate(sizes):
            groups = tuple(GroupVisit(*self.row_groups[group][:2], number) for group, number in visits)
            result.append(Chunk(epoch, index, step, steps, first_step, total, tokens, groups))
            step += steps
        return result

    def chunks(self, *, start_step: int, end_step: int) -> Iterator[Chunk]:
        """Every chunk that holds a step of `[start_step, end_step)`, over as many epochs as that takes."""
        epoch = step = 0
        while step < end_step:
            end = step + self._epoch_steps(epoch)
            if end > start_step:
                chunks = self.epoch(epoch, step)
                yield from (c for c in chunks if c.end_step > start_step and c.first_step < end_step)
            step, epoch = end, epoch + 1

    def num_steps(self, max_epochs: int | None, max_steps: int | None, min_steps: int | None = None) -> int:
        """Steps of the whole run: those of the epochs, and of as many more as `min_steps` takes, cut at `max_steps`."""
        if max_epochs is None:
            if max_steps is None:
                raise ConfigError("One of train.max_epochs and train.max_steps must be set; add train.max_epochs=10.")
            return max_steps
        epoch = total = 0
        while (epoch < max_epochs or total < (min_steps or 0)) and (max_steps is None or total < max_steps):
            total += self._epoch_steps(epoch)
            epoch += 1
        return total if max_steps is None else min(total, max_steps)

    def cursors(self, step: int) -> dict[str, float]:
        """How often each part has been passed through when `step` steps are done: 1.5 is a pass and a half.

        Counted in events of the row groups; inside a chunk, whose windows are shuffled, in proportion to its steps.
        """
        events = np.array([int(group.tokens.sum()) for group in self.row_groups])
        done = np.zeros(len(self.row_groups))
        for chunk_step, size in self._numbered(step):
            groups = np.array([group for group, _ in size.visits])
            np.add.at(done, groups, min(1.0, (step - chunk_step) / size.num_steps))
        return {
            part.name: float((done * events)[part.groups].sum() / max(events[part.groups].sum(), 1))
            for part in self.parts
        }

    def _numbered(self, end_step: int) -> Iterator[tuple[int, _ChunkSize]]:
        """The chunks that begin before a step, with their first steps."""
        epoch = step = 0
        while True:
            for size in self._sizes(epoch):
                if step >= end_step:
                    return
                yield step, size
                step += size.num_steps
            epoch += 1

    def _epoch_steps(self, epoch: int) -> int:
        return sum(size.num_steps for size in self._sizes(epoch))

    def _sizes(self, epoch: int) -> list[_ChunkSize]:
        while len(self._epochs) <= epoch:
            self._epochs.append(self._cut(self._order(len(self._epochs))))
        return self._epochs[epoch]

    def _order(self, epoch: int) -> list[Visit]:
        if self._mixed is not None:
            return self._mixed.epoch(epoch)
        order = self.spec.generator(epoch).permutation(len(self.row_groups))
        return [(group, epoch) for group in order.tolist()]

    def _cut(self, visits: list[Visit]) -> list[_ChunkSize]:
        """Cuts an epoch into chunks of nearly equal size, so that none is a small rest that fills its steps badly."""
        lengths = [self.visit_lengths(visit) for visit in visits]
        tokens = np.array([int(found.sum()) for found in lengths])
        total = int(tokens.sum())
        num_chunks = max(1, round(total / self.chunk_tokens))
        middles = np.cumsum(tokens) - tokens / 2
        chunk_of = np.minimum(middles * num_chunks // max(total, 1), num_chunks - 1)
        chunks = []
        for number in np.unique(chunk_of):
            members = np.flatnonzero(chunk_of == number).tolist()
            chosen = tuple(visits[i] for i in members)
            steps = self._count_steps(chosen, np.concatenate([lengths[i] for i in members]))
            if steps:
                chunks.append(_ChunkSize(chosen, steps, int(tokens[members].sum())))
        return chunks

    def _count_steps(self, visits: tuple[Visit, ...], lengths: IntArray) -> int:
        """`packing.num_steps`, remembered: a small set is one chunk, and its count is the same in every epoch."""
        if self.spec.window.drawn_by_user:
            return num_steps(lengths, self.spec.rule)
        key = tuple(sorted(group for group, _ in visits))
        if key not in self._steps:
            self._steps[key] = num_steps(lengths, self.spec.rule)
        return self._steps[key]


def make_plan(config: ExperimentConfig) -> Plan:
    """The plan of a config's prepared data set; raises ConfigError or DataError when nothing can be trained on."""
    batch, sequence = config.batch, config.sequence
    steps_per_block = max(batch.steps_per_block, MIN_BLOCK_TOKENS // batch.tokens_per_step)
    parts, packed_parts = batch.micro_batches_per_step, batch.parts_packed_for
    _check_room(config, max(parts, packed_parts))
    _check_pool(config)
    rule = PackingRule(batch.tokens_per_step, packed_parts, steps_per_block)
    manifest = load_manifest(config.data.prepared)
    spec = PlanSpec(
        folder=whole_place(config.data.prepared),
        content_hash=manifest.content_hash,
        split=manifest.split,
        seed=config.seed,
        window=WindowRule(
            kind=sequence.window,
            max_length=sequence.max_length,
            stride=sequence.stride or sequence.max_length,
            alpha=sequence.alpha,
        ),
        rule=rule,
        targets=target_rule(config, manifest),
        dealt_anew=parts if parts != packed_parts else None,
        pool_size=config.loss.num_in_batch,
        trained_as="test" if config.refits else "train",
    )
    groups = tuple(_read_users(spec, manifest))
    if not any(group.tokens.any() for group in groups):
        raise DataError(
            f"{config.data.prepared} has no user with two training events, so there is nothing to learn from; "
            "prepare a longer log or choose another data.split."
        )
    return Plan(spec, batch.chunk_tokens, groups, parts_of(manifest, sequence.mix), mixed=sequence.mix is not None)


def _check_room(config: ExperimentConfig, parts: int) -> None:
    """Raises ConfigError when a micro-batch, one of `parts`, cannot hold the longest window."""
    batch, longest = config.batch, config.sequence.max_length
    if longest > batch.tokens_per_step // parts:
        name = "packed_parts" if parts != batch.micro_batches_per_step else "micro_batches_per_step"
        most = batch.tokens_per_step // longest
        raise ConfigError(
            f"sequence.max_length ({longest}) must fit a micro-batch of batch.tokens_per_step / batch.{name} = "
            f"{batch.tokens_per_step // parts} tokens; raise batch.tokens_per_step to {longest * parts} or more"
            + (f", or use batch.{name}={most} or less." if most else ".")
        )


def _check_pool(config: ExperimentConfig) -> None:
    """Raises ConfigError when no step has as many targets as the loss wants to compare with."""
    wanted, tokens = config.loss.num_in_batch, config.batch.tokens_per_step
    if wanted > tokens:
        raise ConfigError(
            f"loss.num_negatives makes {wanted} targets of a step negatives, and a step has no more than "
            f"batch.tokens_per_step ({tokens}); raise that to {wanted} or more, or use fewer negatives."
        )


def tokens_of(ends: IntArray) -> IntArray:
    """Training tokens of users with `ends` training events: one less, because each token needs a target."""
    return np.maximum(ends - 1, 0)


def _read_users(spec: PlanSpec, manifest: Manifest) -> Iterator[RowGroupUsers]:
    """The set's row groups in file order."""
    needs_times = isinstance(spec.split, GlobalTimeSplit)
    columns = ["length", *(["times"] if needs_times else []), *(["user"] if spec.window.drawn_by_user else [])]
    for file in manifest.files:
        for index in range(len(file.row_groups)):
            table = read_row_group(spec.folder, file.path, index, columns)
            offsets = np.concatenate([[0], np.cumsum(table["length"].to_numpy().astype(np.int64))])
            times = table["times"].combine_chunks().flatten().to_numpy() if needs_times else offsets[:0]
            ends, _ = history_ends(spec.split, spec.trained_as, times, offsets)
            users = table["user"].to_numpy() if spec.window.drawn_by_user else None
            yield RowGroupUsers(file.path, index, tokens_of(ends), users)
