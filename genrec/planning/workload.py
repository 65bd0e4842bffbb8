"""What a step is made of, from the prepared set: the micro-batches of its first chunk, for any number of parts."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.packing import PackingRule, num_steps, pack, window_cost
from genrec.data.plan import make_plan
from genrec.data.schema import MANIFEST_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import ConfigError, DataError
from genrec.semantic.run_map import semantic_ids_for

IntArray = npt.NDArray[np.int64]

ACTIONS_WITHOUT_DATA = 2
FULL_STEPS = 2


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What of a prepared set decides the size of a model."""

    num_items: int
    num_train_items: int
    num_actions: int = 0
    vector_dim: int = 0
    code_sizes: tuple[int, ...] = ()
    """Codes of each level, where the config's model writes codes."""

    @property
    def items_of_loss(self) -> int:
        """Rows that the loss compares with: codes of all levels, or items that training knows."""
        return sum(self.code_sizes) or self.num_train_items

    @classmethod
    def of(cls, manifest: Manifest, config: ExperimentConfig) -> "Catalogue":
        """That of a set and the config's map; raises DataError where the two are not of the same items."""
        ids = semantic_ids_for(config, manifest.num_items)
        return cls(
            num_items=manifest.num_items,
            num_train_items=manifest.num_train_items or manifest.num_items,
            num_actions=len(manifest.actions),
            vector_dim=0 if manifest.item_vectors is None else manifest.item_vectors.dim,
            code_sizes=() if ids is None else ids.sizes,
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """Windows of a chunk as steps of a number of micro-batches.

    lengths       [num_windows] of all steps, one micro-batch after another
    borders       [num_micro_batches + 1] of those that hold windows
    parts         micro-batches of a step
    """

    catalogue: Catalogue
    lengths: IntArray
    borders: IntArray
    parts: int
    num_steps: int

    @property
    def tokens_per_step(self) -> float:
        """Events of a step, on average."""
        return float(self.lengths.sum()) / self.num_steps

    def micro_batch(self, index: int) -> IntArray:
        """Window lengths of one micro-batch."""
        return self.lengths[self.borders[index] : self.borders[index + 1]]

    def heaviest(self, count: int) -> list[IntArray]:
        """The `count` micro-batches of most cost: one of them needs the most memory."""
        costs = np.add.reduceat(window_cost(self.lengths), self.borders[:-1])
        return [self.micro_batch(int(index)) for index in np.argsort(costs)[::-1][:count]]


class Windows:
    """The windows of a config's first chunk, which are packed anew for every number of micro-batches."""

    def __init__(self, config: ExperimentConfig, catalogue: Catalogue, lengths: IntArray, *, repeats: bool) -> None:
        """`repeats` takes the windows again until they fill some steps: a small set stands for more of the same."""
        self.config = config
        self.catalogue = catalogue
        rounds = -(-FULL_STEPS * config.batch.tokens_per_step // int(lengths.sum())) if repeats else 1
        self.lengths = np.tile(lengths, max(1, rounds))

    def workload(self, parts: int) -> Workload | None:
        """The steps in `parts` micro-batches each; None where a micro-batch could not hold the longest window."""
        batch = self.config.batch
        if self.config.sequence.max_length > batch.tokens_per_step // parts:
            return None
        rule = PackingRule(batch.tokens_per_step, parts, batch.steps_per_block)
        steps = num_steps(self.lengths, rule)
        order, borders = pack(self.lengths, rule, steps, np.random.default_rng(self.config.seed))
        filled = np.flatnonzero(np.diff(borders))
        borders = np.concatenate([borders[:-1][filled], borders[-1:]])
        return Workload(self.catalogue, self.lengths[order], borders, parts, steps)


def read_windows(config: ExperimentConfig, *, repeats: bool = False) -> Windows:
    """The windows of a config's prepared set; DataError says how to prepare it where that has not been done."""
    folder = at_hand(config.data.prepared)
    if not (folder / MANIFEST_FILE).is_file():
        raise DataError(
            f"The plan reads the lengths of {folder}, which is not prepared; run `genrec prepare` with the same config "
            "and overrides first."
        )
    plan = make_plan(config)
    chunk = plan.epoch(0)[0]
    number = {(group.path, group.group): index for index, group in enumerate(plan.row_groups)}
    lengths = np.concatenate(
        [plan.visit_lengths((number[visit.path, visit.group], visit.epoch)) for visit in chunk.row_groups]
    )
    catalogue = Catalogue.of(load_manifest(folder), config)
    return Windows(config, catalogue, lengths[lengths > 0].astype(np.int64), repeats=repeats)


def shared_parts(config: ExperimentConfig, workers: int, most: int = 64) -> list[int]:
    """Numbers of micro-batches a step, rising, that `workers` share and that hold the longest window.

    These are powers of two for each worker, up to `most`, and the config's own where it fits. Raises ConfigError when
    there is none.
    """
    tokens, longest = config.batch.tokens_per_step, config.sequence.max_length
    tried = {workers * 2**power for power in range(most.bit_length())} | {config.batch.micro_batches_per_step}
    found = sorted(parts for parts in tried if parts % workers == 0 and tokens // parts >= longest)
    if not found:
        raise ConfigError(
            f"batch.tokens_per_step ({tokens:,}) must hold a window of sequence.max_length ({longest:,}) for each of "
            f"{workers:,} workers; raise it to {longest * workers} or more, or use fewer workers."
        )
    return found
