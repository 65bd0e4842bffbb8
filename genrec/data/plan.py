"""The training order (contract 3): a pure function of (data set, batch rule, seed, epoch), whatever the workers.

1. An epoch is a seeded permutation of the data set's row groups.
2. A chunk is a run of that permutation with about `batch.chunk_tokens` events; it is read and shuffled as a whole.
3. A chunk's windows are packed into whole steps (packing.py), so a step never crosses a chunk, and an epoch is a whole
   number of steps. Steps are numbered through all epochs: the cursor of a run is one number, the next step.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genrec.config import ExperimentConfig, GlobalTimeSplit, Split
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.packing import IntArray, PackingRule, num_steps
from genrec.data.sequence_files import read_row_group
from genrec.data.split import history_ends
from genrec.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of row groups that is read, shuffled and packed together."""

    epoch: int
    index: int
    first_step: int
    num_steps: int
    epoch_first_step: int
    epoch_num_steps: int
    row_groups: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """The little that a worker or a map task needs to rebuild its part of the plan."""

    folder: str
    content_hash: str
    split: Split
    seed: int
    max_length: int
    window: str
    rule: PackingRule

    def generator(self, *salt: int) -> np.random.Generator:
        """A generator that depends on the data set, the seed and `salt` alone."""
        digest = hashlib.sha256(self.content_hash.encode()).digest()
        return np.random.default_rng([int.from_bytes(digest[:8], "little"), self.seed, *salt])


@dataclass(frozen=True)
class Plan:
    """Chunks in training order, epoch after epoch."""

    spec: PlanSpec
    chunk_tokens: int
    row_groups: tuple[tuple[str, int], ...]
    window_lengths: tuple[IntArray, ...] = field(repr=False)

    def epoch(self, epoch: int, first_step: int = 0) -> list[Chunk]:
        """The chunks of one epoch, whose steps are numbered from `first_step`."""
        order = self.spec.generator(epoch).permutation(len(self.row_groups))
        tokens = np.array([int(self.window_lengths[i].sum()) for i in order])
        chunk_of = (np.cumsum(tokens) - tokens) // self.chunk_tokens
        chunks: list[tuple[tuple[tuple[str, int], ...], int]] = []
        for number in np.unique(chunk_of):
            members = order[chunk_of == number]
            steps = num_steps(np.concatenate([self.window_lengths[i] for i in members]), self.spec.rule)
            if steps:
                chunks.append((tuple(self.row_groups[i] for i in members), steps))
        total = sum(steps for _, steps in chunks)
        result, step = [], first_step
        for index, (groups, steps) in enumerate(chunks):
            result.append(Chunk(epoch, index, step, steps, first_step, total, groups))
            step += steps
        return result

    def chunks(self, *, start_step: int, end_step: int) -> Iterator[Chunk]:
        """Every chunk that holds a step of `[start_step, end_step)`, over as many epochs as that takes."""
        epoch = step = 0
        while step < end_step:
            chunks = self.epoch(epoch, step)
            yield from (c for c in chunks if c.first_step + c.num_steps > start_step and c.first_step < end_step)
            step = chunks[-1].first_step + chunks[-1].num_steps
            epoch += 1

    def num_steps(self, max_epochs: int | None, max_steps: int | None) -> int:
        """Steps of the whole run: the epochs' steps, cut at `max_steps`."""
        if max_epochs is None:
            if max_steps is None:
                raise ConfigError("One of train.max_epochs and train.max_steps must be set; add train.max_epochs=10.")
            return max_steps
        total = 0
        for epoch in range(max_epochs):
            if max_steps is not None and total >= max_steps:
                break
            total += sum(chunk.num_steps for chunk in self.epoch(epoch))
        return total if max_steps is None else min(total, max_steps)


def make_plan(config: ExperimentConfig) -> Plan:
    """The plan of a config's prepared data set; raises ConfigError or DataError when nothing can be trained on."""
    batch = config.batch
    rule = PackingRule(batch.tokens_per_step, batch.micro_batches_per_step, batch.steps_per_block)
    if config.sequence.max_length > rule.tokens_per_micro_batch:
        raise ConfigError(
            f"sequence.max_length ({config.sequence.max_length}) must fit a micro-batch of batch.tokens_per_step / "
            f"batch.micro_batches_per_step = {rule.tokens_per_micro_batch} tokens; raise batch.tokens_per_step to "
            f"{config.sequence.max_length * batch.micro_batches_per_step} or more."
        )
    folder = Path(config.data.prepared)
    manifest = load_manifest(folder)
    spec = PlanSpec(
        folder=str(folder.absolute()),
        content_hash=manifest.content_hash,
        split=manifest.split,
        seed=config.seed,
        max_length=config.sequence.max_length,
        window=config.sequence.window,
        rule=rule,
    )
    groups, lengths = _window_lengths(spec, manifest)
    if not any(len(group) for group in lengths):
        raise DataError(
            f"{folder} has no user with two training events, so there is nothing to learn from; "
            "prepare a longer log or choose another data.split."
        )
    return Plan(spec, batch.chunk_tokens, groups, lengths)


def windows_of(ends: IntArray, max_length: int) -> IntArray:
    """Tokens of each user's training window: one less than its events (0 without a target), at most `max_length`."""
    return np.clip(ends - 1, 0, max_length)


def _window_lengths(spec: PlanSpec, manifest: Manifest) -> tuple[tuple[tuple[str, int], ...], tuple[IntArray, ...]]:
    """Row groups in file order, and the token counts of their non-empty windows."""
    groups: list[tuple[str, int]] = []
    lengths: list[npt.NDArray[np.int64]] = []
    needs_times = isinstance(spec.split, GlobalTimeSplit)
    for file in manifest.files:
        for index in range(len(file.row_groups)):
            columns = ["length", "times"] if needs_times else ["length"]
            table = read_row_group(spec.folder, file.path, index, columns)
            offsets = np.concatenate([[0], np.cumsum(table["length"].to_numpy().astype(np.int64))])
            times = table["times"].combine_chunks().flatten().to_numpy() if needs_times else offsets[:0]
            ends, _ = history_ends(spec.split, "train", times, offsets)
            tokens = windows_of(ends, spec.max_length)
            groups.append((file.path, index))
            lengths.append(tokens[tokens > 0])
    return tuple(groups), tuple(lengths)
