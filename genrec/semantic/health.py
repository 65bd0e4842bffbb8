"""Is a map any good? Measures of a tokenizer's codes, before collisions are resolved, and the gate that reads them.

collision_rate      share of items whose codes another item has too
buckets             how many items share one tuple: the largest, and how many buckets have 1, 2, 3-4, 5-8, ... items
levels              of each level: codes in use, and the entropy of how often each is used
reconstruction      squared error of what codes stand for, over the variance of the vectors, by number of levels
neighbours          share of an item's nearest items (cosine) that are nearest by their codes' vectors too
neighbours_share    how often an item and one of its nearest items share the first code, the first two, ...; beside
                    any two items
purity              share of items that have the most common type of their prefix; beside that of all items
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.config import HealthConfig
from genrec.errors import DataError
from genrec.semantic.collisions import Codes, buckets_of
from genrec.semantic.tokenizers import ItemTokenizer
from genrec.semantic.tokenizers_rows import Rows

ROWS_PER_BATCH = 16_384
QUERIES = 1_000


@dataclass(frozen=True, slots=True)
class LevelHealth:
    """One level: its codes, how many are in use, and the entropy of their use, in bits and over the highest."""

    size: int
    used: int
    entropy_bits: float
    evenness: float

    @property
    def usage(self) -> float:
        """Share of the codes that an item has."""
        return self.used / self.size


@dataclass(frozen=True, slots=True)
class NeighbourHealth:
    """Of a sample of items and their nearest `num_neighbours`: what the codes keep of them.

    `kept` is None without a decoder. `shared` and `shared_by_chance` have a number for each prefix length.
    """

    num_neighbours: int
    num_items: int
    kept: float | None
    shared: tuple[float, ...]
    shared_by_chance: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """What `health.json` holds; None where something does not apply: no types, or codes that were made elsewhere."""

    num_items: int
    without_vector: float
    collision_rate: float
    distinct: int
    max_bucket: int
    buckets: dict[str, int]
    levels: tuple[LevelHealth, ...]
    reconstruction: tuple[float, ...] | None
    neighbours: NeighbourHealth | None
    purity: tuple[float, ...] | None
    purity_by_chance: float | None
    final_sizes: tuple[int, ...]
    num_moved: int

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def health_from_json(values: dict[str, Any]) -> Health:
    """The health that `as_json` wrote; raises KeyError or TypeError when it is none."""
    nearest = values["neighbours"]
    if nearest is not None:
        shared, chance = tuple(nearest["shared"]), tuple(nearest["shared_by_chance"])
        nearest = NeighbourHealth(**nearest | {"shared": shared, "shared_by_chance": chance})
    tuples = {name: tuple(values[name]) if values[name] is not None else None for name in ("reconstruction", "purity")}
    levels = tuple(LevelHealth(**level) for level in values["levels"])
    return Health(
        **values | tuples | {"levels": levels, "neighbours": nearest, "final_sizes": tuple(values["final_sizes"])}
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """What is measured: `codes` [num_items, num_levels] as the tokenizer gave them, of items with `rows`' vectors.

    `types` [num_items] has a number for each item's type, 0 for none. `tokenizer` is None for published codes.
    """

    codes: Codes
    sizes: tuple[int, ...]
    rows: Rows | None
    has_vector: npt.NDArray[np.bool_]
    types: npt.NDArray[np.uint8]
    tokenizer: ItemTokenizer | None


def measure(measured: Measured, config: HealthConfig, seed: int, final_sizes: Sequence[int], num_moved: int) -> Health:
    """The health of a map; `final_sizes` and `num_moved` say what was done about collisions."""
    codes = measured.codes
    bucket, counts = buckets_of(codes)
    rows, tokenizer = measured.rows, measured.tokenizer
    reconstruction = _reconstruction(rows, tokenizer, codes) if rows is not None and tokenizer is not None else None
    purity, by_chance = _purity(codes, measured.types)
    return Health(
        num_items=len(codes),
        without_vector=float(1 - measured.has_vector.mean()),
        collision_rate=float((counts[bucket] > 1).mean()),
        distinct=len(counts),
        max_bucket=int(counts.max()),
        buckets=_histogram(counts),
        levels=tuple(_level(codes[:, level], size) for level, size in enumerate(measured.sizes)),
        reconstruction=reconstruction,
        neighbours=_neighbours(measured, config, seed) if rows is not None and len(rows.chosen) > 1 else None,
        purity=purity,
        purity_by_chance=by_chance,
        final_sizes=tuple(final_sizes),
        num_moved=num_moved,
    )


def problems(health: Health, config: HealthConfig) -> list[str]:
    """What of a health is beyond the config's thresholds, each with both numbers and the threshold's name."""
    least_used = min(health.levels, key=lambda level: level.usage)
    least_even = min(health.levels, key=lambda level: level.evenness)
    error = health.reconstruction[-1] if health.reconstruction else None
    kept = health.neighbours.kept if health.neighbours else None
    purity = health.purity[0] if health.purity else None
    found: list[str] = []
    for name, text, value, most in (
        ("max_collision_rate", "share of items with another's codes", health.collision_rate, config.max_collision_rate),
        ("max_bucket", "items with the same codes", health.max_bucket, config.max_bucket),
        ("max_reconstruction_error", "reconstruction error", error, config.max_reconstruction_error),
        ("max_without_vector", "share of items without a vector", health.without_vector, config.max_without_vector),
    ):
        if value is not None and most is not None and value > most:
            found.append(f"{text} {value:.4g}, at most {most:.4g} by {name}")
    for name, text, value, least in (
        ("min_code_usage", "share of a level's codes in use", least_used.usage, config.min_code_usage),
        ("min_entropy", "evenness of a level's codes", least_even.evenness, config.min_entropy),
        ("min_neighbours", "share of nearest items kept", kept, config.min_neighbours),
        ("min_purity", "share of items with their first code's type", purity, config.min_purity),
    ):
        if value is not None and least is not None and value < least:
            found.append(f"{text} {value:.4g}, at least {least:.4g} by {name}")
    return found


def check_health(health: Health, config: HealthConfig) -> None:
    """Raises DataError, with every number, when a health is beyond a threshold."""
    found = problems(health, config)
    if found:
        raise DataError(
            f"The codes are not healthy enough ({'; '.join(found)}), so no map was written; change "
            "semantic_ids.tokenizer or semantic_ids.vectors, move the thresholds in semantic_ids.health, or accept it "
            "with --accept-unhealthy."
        )


def _histogram(counts: npt.NDArray[np.int64]) -> dict[str, int]:
    """Buckets by how many items they have: 1, 2, 3-4, 5-8, ..."""
    powers, numbers = np.unique(np.ceil(np.log2(counts)).astype(np.int64), return_counts=True)
    names = ["1" if power == 0 else "2" if power == 1 else f"{2 ** (power - 1) + 1}-{2**power}" for power in powers]
    return dict(zip(names, numbers.tolist(), strict=True))


def _level(codes: npt.NDArray[np.int32], size: int) -> LevelHealth:
    shares = np.bincount(codes, minlength=size) / len(codes)
    used = shares[shares > 0]
    bits = float(-(used * np.log2(used)).sum()) + 0.0  # + 0.0: no minus zero
    most = np.log2(min(size, len(codes)))
    return LevelHealth(size, len(used), bits, bits / float(most) if most > 0 else 1.0)


def _reconstruction(rows: Rows, tokenizer: ItemTokenizer, codes: Codes) -> tuple[float, ...]:
    """Squared error over variance with the first code, the first two, ..., all."""
    total = torch.zeros(rows.dim, dtype=torch.float64, device=rows.device)
    squares = torch.zeros(1, dtype=torch.float64, device=rows.device)
    errors = torch.zeros(codes.shape[1], dtype=torch.float64, device=rows.device)
    for place, vectors in rows.batches(ROWS_PER_BATCH):
        picked = torch.from_numpy(codes[rows.chosen[place]].astype(np.int64)).to(rows.device)
        total += vectors.double().sum(dim=0)
        squares += vectors.double().square().sum()
        for level in range(codes.shape[1]):
            errors[level] += (vectors - tokenizer.decode(picked[:, : level + 1])).double().square().sum()
    variance = float(squares - total.square().sum() / max(len(rows.chosen), 1))
    return tuple((errors / max(variance, 1e-12)).tolist())


def _neighbours(measured: Measured, config: HealthConfig, seed: int) -> NeighbourHealth:
    rows, tokenizer = measured.rows, measured.tokenizer
    assert rows is not None
    rng = np.random.default_rng([seed, 11])
    items = np.sort(rng.choice(rows.chosen, size=min(config.sample_items, len(rows.chosen)), replace=False))
    queries = np.sort(rng.choice(len(items), size=min(QUERIES, len(items)), replace=False))
    num = min(config.num_neighbours, len(items) - 1)
    true = _nearest(rows.read(items), queries, num)
    codes = torch.from_numpy(measured.codes[items].astype(np.int64))
    kept = None
    if tokenizer is not None:
        found = _nearest(tokenizer.decode(codes.to(rows.device)), queries, num)
        kept = float((true[:, :, None] == found[:, None, :]).any(dim=2).double().mean())
    mine = codes[torch.from_numpy(queries)]
    shared = _prefixes_shared(mine[:, None], codes[true])
    others = torch.from_numpy(rng.integers(len(items), size=(len(queries), max(num, 32))))
    apart = others != torch.from_numpy(queries)[:, None]
    chance = _prefixes_shared(mine[:, None], codes[others], apart)
    return NeighbourHealth(num, len(items), kept, shared, chance)


def _nearest(vectors: Tensor, queries: npt.NDArray[np.int64], num: int) -> Tensor:
    """The `num` rows with the highest cosine to each query but itself, int64 [num_queries, num]."""
    unit = F.normalize(vectors, dim=1)
    rows = torch.from_numpy(queries).to(unit.device)
    scores = unit[rows] @ unit.T
    scores[torch.arange(len(rows), device=unit.device), rows] = -torch.inf
    return scores.topk(num, dim=1).indices.cpu()


def _prefixes_shared(mine: Tensor, others: Tensor, counted: Tensor | None = None) -> tuple[float, ...]:
    """How often codes agree on the first level, the first two, ...: means over pairs, of those that are counted."""
    agree = (mine == others).long().cumprod(dim=-1).double()
    if counted is not None:
        agree = agree[counted]
    return tuple(agree.reshape(-1, agree.shape[-1]).mean(dim=0).tolist())


def _purity(codes: Codes, types: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...] | None, float | None]:
    typed = types > 0
    if len(np.unique(types[typed])) < 2:
        return None, None
    codes, kinds = codes[typed], types[typed].astype(np.int64)
    pure = []
    for level in range(codes.shape[1]):
        bucket, _ = buckets_of(codes[:, : level + 1])
        pairs, counts = np.unique(np.stack([bucket, kinds], axis=1), axis=0, return_counts=True)
        most = np.zeros(int(bucket.max()) + 1, dtype=np.int64)
        np.maximum.at(most, pairs[:, 0], counts)
        pure.append(float(most.sum() / len(codes)))
    return tuple(pure), float(np.bincount(kinds).max() / len(kinds))
