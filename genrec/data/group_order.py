"""In which order an epoch takes the row groups: all of them once, or a mixture of the set's parts by given shares.

Each row group comes with the number of the pass over its part, so that what is drawn anew in every epoch (stochastic
length) is drawn anew in every pass of a part.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from genrec.data.manifest import Manifest
from genrec.data.packing import IntArray
from genrec.errors import ConfigError

Visit = tuple[int, int]
"""A row group, by its number in the set, and the pass over its part."""


@dataclass(frozen=True, slots=True)
class PartGroups:
    """A part of the set: its row groups, by their numbers, and the share of tokens that it shall have."""

    name: str
    groups: IntArray
    share: float


WHOLE = "all"
"""Name of the only part of a set without parts."""


def parts_of(manifest: Manifest, mix: Mapping[str, float] | None) -> tuple[PartGroups, ...]:
    """The parts of a set, with the shares of `mix` adding up to 1; raises ConfigError when the names do not fit."""
    counts = [len(file.row_groups) for file in manifest.files]
    borders = np.concatenate([[0], np.cumsum(counts)])
    named = [(part.name, part.num_files) for part in manifest.parts] or [(WHOLE, len(manifest.files))]
    names = [name for name, _ in named]
    if mix is not None and set(mix) != set(names):
        raise ConfigError(
            f"sequence.mix names {sorted(mix)} and the prepared data set has the parts {sorted(names)}; "
            "give each of its parts a share (0 leaves one out), or leave sequence.mix out."
        )
    shares = mix or dict.fromkeys(names, 1.0)
    total = sum(shares.values())
    parts, first_file = [], 0
    for name, num_files in named:
        groups = np.arange(borders[first_file], borders[first_file + num_files])
        parts.append(PartGroups(name, groups, shares[name] / total))
        first_file += num_files
    return tuple(parts)


class MixedOrder:
    """Row groups of all parts by shares: the next one comes from the part that is furthest behind its share of tokens.

    Each part has a stream of its own: one seeded permutation of its row groups after another. Streams do not start
    again with an epoch, so each row group of a part comes exactly once in each of the part's own passes.
    """

    def __init__(
        self,
        parts: tuple[PartGroups, ...],
        tokens: Callable[[Visit], int],
        generator: Callable[..., np.random.Generator],
        tokens_per_epoch: int,
    ) -> None:
        """`tokens` of a row group in a pass; `generator` from salts; an epoch ends when it has `tokens_per_epoch`."""
        self._parts = [part for part in parts if part.share > 0]
        self._tokens = tokens
        self._generator = generator
        self._tokens_per_epoch = tokens_per_epoch
        self._shares = np.array([part.share for part in self._parts])
        self._taken = np.zeros(len(self._parts), dtype=np.int64)
        self._pass = [0] * len(self._parts)
        self._left: list[list[int]] = [[] for _ in self._parts]
        self._epochs: list[list[Visit]] = []
        for number, part in enumerate(self._parts):
            self._shuffle(number)
            if not any(tokens((group, 0)) for group in part.groups.tolist()):
                raise ConfigError(
                    f"sequence.mix gives part {part.name!r} a share of {part.share:.3g}, and it has nothing to train "
                    "on; give it 0."
                )

    def epoch(self, epoch: int) -> list[Visit]:
        """The row groups of one epoch, in order."""
        while len(self._epochs) <= epoch:
            end = (len(self._epochs) + 1) * self._tokens_per_epoch
            visits = []
            while self._taken.sum() < end:
                visits.append(self._take())
            self._epochs.append(visits)
        return self._epochs[epoch]

    def _take(self) -> Visit:
        behind = self._shares * (self._taken.sum() + 1) - self._taken
        number = int(np.argmax(behind))
        if not self._left[number]:
            self._pass[number] += 1
            self._shuffle(number)
        visit = (self._left[number].pop(), self._pass[number])
        self._taken[number] += self._tokens(visit)
        return visit

    def _shuffle(self, number: int) -> None:
        part = self._parts[number]
        # Three salts: an epoch's own order has one, a chunk's draws have two.
        salts = (self._pass[number], int(part.groups[0]) if len(part.groups) else 0, 0)
        self._left[number] = self._generator(*salts).permutation(part.groups).tolist()
