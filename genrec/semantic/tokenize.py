"""`genrec tokenize`: from item vectors to a map of codes, which appears at once or not at all.

vectors      of every item, into a memory-mapped file in a work folder beside the map
tokenizer    trained on them, then run over all of them, batch by batch
collisions   codes of one's own for every item
health       measured; beyond a threshold nothing is written
map          everything into the work folder, map.json last, which then becomes the map's folder
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from genrec.config import (
    ExperimentConfig,
    FSQTokenizer,
    PublishedTokenizer,
    RQVAETokenizer,
    SemanticIdsConfig,
)
from genrec.data.item_types import read_item_types
from genrec.errors import ConfigError, DataError
from genrec.reporting.semantic_report import health_page
from genrec.run_dir import value_differences, write_atomically
from genrec.semantic.collisions import Codes, Resolved, check_room, dedup, dedup_within, nearest
from genrec.semantic.fsq import fit_fsq
from genrec.semantic.health import Health, Measured, check_health, measure, problems
from genrec.semantic.ids import MAP_FILE, SemanticIds, load_semantic_ids
from genrec.semantic.map_folder import (
    HEALTH_FILE,
    PAGE_FILE,
    MapExistsError,
    check_target,
    file_digests,
    publish,
    save_space,
    work_folder,
)
from genrec.semantic.published import read_published
from genrec.semantic.rkmeans import fit_rkmeans
from genrec.semantic.rqvae import fit_rqvae
from genrec.semantic.tokenizers import ItemTokenizer
from genrec.semantic.tokenizers_rows import ALONE, Progress, Rows, Team, choose, pick_device, quiet
from genrec.semantic.vectors import ItemVectorRows, open_vectors, write_vectors
from genrec.semantic.vocabulary import item_ids, items_digest

ENCODE_ROWS = 16_384
VECTORS_FILE = "work-vectors.npy"


@dataclass(frozen=True, slots=True)
class Tokenized:
    """What `genrec tokenize` has made: the map, its health, and the thresholds that it was let pass."""

    ids: SemanticIds
    health: Health
    accepted: tuple[str, ...] = ()


def semantic_section(config: ExperimentConfig) -> SemanticIdsConfig:
    """The section `semantic_ids`; raises ConfigError when the config has none."""
    if config.semantic_ids is None:
        raise ConfigError(
            "`genrec tokenize` needs the section semantic_ids, and the config has none; give semantic_ids.path a "
            "folder for the map."
        )
    return config.semantic_ids


def tokenize(
    config: ExperimentConfig,
    *,
    overwrite: bool = False,
    accept_unhealthy: bool = False,
    progress: Progress = quiet,
    team: Team = ALONE,
) -> Tokenized | None:
    """Makes the map at `semantic_ids.path` for the items of the prepared set; None on workers but the first.

    Raises DataError when a map is there already (unless `overwrite`), when vectors cannot be read, and when the codes
    are less healthy than `semantic_ids.health` asks (unless `accept_unhealthy`).
    """
    section = semantic_section(config)
    target = Path(section.path).absolute()
    if not team.is_first:
        _help_fitting(config, section, target, team)
        return None
    check_target(target, overwrite=overwrite)
    ids = item_ids(config.data.prepared)
    with work_folder(target) as work:
        check_target(target, overwrite=overwrite)  # another process may have made it while this one waited
        made = _make(config, section, ids, work, progress, team)
        found = tuple(problems(made.health, section.health))
        if not accept_unhealthy:
            check_health(made.health, section.health)
        finished = work / "map"
        origin = {
            "seed": config.seed,
            "tokenizer": section.tokenizer.model_dump(mode="json"),
            "vectors": section.vectors.model_dump(mode="json"),
            "collisions": section.collisions,
            "train_on": config.sequence.train_on,
            "accepted": list(found),
            "error": made.error,
            "files": file_digests(finished),
            "extensions": [],
        }
        semantic_ids = SemanticIds(with_padding(made.resolved.codes), made.resolved.sizes, items_digest(ids), origin)
        write_health(made.health, target.name, found, finished)
        semantic_ids.save(finished)
        check_target(target, overwrite=overwrite)
        publish(finished, target)
    return Tokenized(semantic_ids, made.health, found)


def ensure_map(
    config: ExperimentConfig, progress: Progress = quiet, say: Callable[[str], None] = lambda _: None
) -> None:
    """Makes the map that the config's model writes codes of, where there is none yet; the data set is prepared.

    Raises DataError as `tokenize` does, and when the map that is there was made with another tokenizer.
    """
    if not config.writes_codes or config.semantic_ids is None:
        return
    path = config.semantic_ids.path
    made = None
    if not (Path(path) / MAP_FILE).exists():
        with suppress(MapExistsError):  # a run beside this one made it meanwhile
            made = tokenize(config, progress=progress)
    if made is None:
        origin = load_semantic_ids(path).origin
        _check_origin(config.semantic_ids, origin)
        _check_unseen(config, path, origin)
        return
    say(f"Semantic ids: {path}, levels {list(made.ids.sizes)}; {Path(path) / PAGE_FILE} says how good they are.")


def _check_origin(section: SemanticIdsConfig, origin: dict[str, Any]) -> None:
    """Raises DataError when a map was made with another tokenizer than the config's, which would have no effect."""
    made = origin.get("tokenizer")
    if not isinstance(made, dict):
        return
    asked = {name: value for name, value in section.tokenizer.model_dump(mode="json").items() if name in made}
    # Where published codes were read from may have moved since.
    changes = value_differences({**made, "path": None}, {**asked, "path": None})
    if changes:
        raise DataError(
            f"{section.path} holds a map made with another tokenizer ({changes[0]}), and a model takes the map as it "
            "is; set semantic_ids.tokenizer back, name another folder in semantic_ids.path, or make the map anew with "
            "`genrec tokenize CONFIG --overwrite`."
        )


def _check_unseen(config: ExperimentConfig, path: str, origin: dict[str, Any]) -> None:
    """Raises DataError when a map may know the events that a run of the config validates on."""
    is_learned = isinstance(origin.get("vectors"), dict) and origin["vectors"].get("name") == "export"
    if is_learned and origin.get("train_on") == "train+validation" and not config.refits:
        raise DataError(
            f"{path} holds a map that was made for refits, from the item table of a model that may have been trained "
            "on validation events, by which this run would choose its best step; name another folder in "
            "semantic_ids.path, or set sequence.train_on=train+validation."
        )


@dataclass(frozen=True, slots=True)
class _Made:
    resolved: Resolved
    health: Health
    error: float | None


def _make(
    config: ExperimentConfig, section: SemanticIdsConfig, ids: pa.Array, work: Path, progress: Progress, team: Team
) -> _Made:
    """Codes and their health; the tokenizer and the space of its vectors are written to `work`/map."""
    finished = work / "map"
    finished.mkdir()
    types = read_item_types(config.data.prepared)[1:]
    if isinstance(section.tokenizer, PublishedTokenizer):
        return _publish_codes(config, section, section.tokenizer, ids, types)
    if section.collisions == "nearest":
        check_room(len(ids), section.tokenizer.sizes)
    source = open_vectors(config, section, progress=progress)
    progress("vectors", 0, 1)
    found = write_vectors(source, work / VECTORS_FILE, 0, ids, section.vectors.normalize)
    save_space(source.state, finished)
    team.wait()
    tokenizer = _fit(config, section, found, progress, team)
    tokenizer.save(finished)
    codes = encode(tokenizer, found, progress)
    resolved = resolve(section, codes, found, tokenizer)
    progress("health", 0, 1)
    rows = _rows(section, found, config.seed)
    measured = Measured(codes, tokenizer.sizes, rows, found.has_vector, types, tokenizer)
    health = measure(measured, section.health, config.seed, resolved.sizes, resolved.num_moved)
    return _Made(resolved, health, relative_error(tokenizer, found, codes))


def _publish_codes(
    config: ExperimentConfig,
    section: SemanticIdsConfig,
    tokenizer: PublishedTokenizer,
    ids: pa.Array,
    types: npt.NDArray[np.uint8],
) -> _Made:
    codes, sizes = read_published(tokenizer, ids)
    resolved = resolve_published(section, codes, sizes)
    everyone = np.ones(len(codes), dtype=np.bool_)
    measured = Measured(codes, sizes, None, everyone, types, None)
    health = measure(measured, section.health, config.seed, resolved.sizes, resolved.num_moved)
    return _Made(resolved, health, None)


def resolve_published(
    section: SemanticIdsConfig, codes: Codes, sizes: tuple[int, ...], taken: Codes | None = None
) -> Resolved:
    """Published codes with numbers for those that others share; raises ConfigError where nearest is asked for."""
    if section.collisions == "dedup":
        return dedup(codes, sizes, taken)
    everything = codes if taken is None else np.concatenate([taken, codes])
    if len(np.unique(everything, axis=0)) < len(everything):
        raise ConfigError(
            "Published codes come without codebooks, so no nearest free code is known, and some items share theirs; "
            "set semantic_ids.collisions: dedup."
        )
    return Resolved(codes, sizes, 0)


def _help_fitting(config: ExperimentConfig, section: SemanticIdsConfig, target: Path, team: Team) -> None:
    """What workers but the first do: they wait for the vectors and train on their share of them."""
    if isinstance(section.tokenizer, PublishedTokenizer):
        return
    team.wait()
    vectors = np.load(target.parent / f".{target.name}.tokenizing" / VECTORS_FILE, mmap_mode="c", allow_pickle=False)
    has_vector = np.concatenate(
        [vectors[first : first + ENCODE_ROWS].any(axis=1) for first in range(0, len(vectors), ENCODE_ROWS)]
    )
    _fit(config, section, ItemVectorRows(vectors, has_vector), quiet, team)


def _fit(
    config: ExperimentConfig, section: SemanticIdsConfig, found: ItemVectorRows, progress: Progress, team: Team
) -> ItemTokenizer:
    wanted = section.tokenizer
    if not found.has_vector.any():
        raise DataError(
            "No item has a vector, so there is nothing to make codes of; mend what semantic_ids.vectors reads."
        )
    if isinstance(wanted, RQVAETokenizer):
        return fit_rqvae(wanted, _rows(section, found, config.seed, team), config.seed, progress)
    if isinstance(wanted, FSQTokenizer):
        return fit_fsq(wanted, _rows(section, found, config.seed, team), config.seed, progress)
    assert not isinstance(wanted, PublishedTokenizer)
    return fit_rkmeans(wanted, _rows(section, found, config.seed, team), config.seed, progress)


def _rows(section: SemanticIdsConfig, found: ItemVectorRows, seed: int, team: Team = ALONE) -> Rows:
    most = getattr(section.tokenizer, "max_train_rows", len(found.vectors))
    chosen = choose(found.has_vector, most, seed)
    return Rows(found.vectors, chosen, team.rank, team.count, team.all_reduce, pick_device())


def encode(tokenizer: ItemTokenizer, found: ItemVectorRows, progress: Progress = quiet) -> Codes:
    """The codes of all rows, int32 [num_rows, num_levels], batch by batch; a row without a vector counts as zeros."""
    device = next(iter(tokenizer.books)).device
    codes = np.empty((len(found.vectors), len(tokenizer.sizes)), dtype=np.int32)
    for first in range(0, len(codes), ENCODE_ROWS):
        progress("codes", first, len(codes))
        batch = torch.from_numpy(np.ascontiguousarray(found.vectors[first : first + ENCODE_ROWS])).to(device)
        codes[first : first + ENCODE_ROWS] = tokenizer.encode(batch).cpu().numpy()
    return codes


def resolve(
    section: SemanticIdsConfig,
    codes: Codes,
    found: ItemVectorRows,
    tokenizer: ItemTokenizer,
    taken: Codes | None = None,
) -> Resolved:
    """Codes that no two items share, by the rule of `semantic_ids.collisions`; `taken` ones stay."""
    if section.collisions == "nearest":
        return nearest(codes, found.vectors, tokenizer.cpu(), taken)
    if taken is None:
        return dedup(codes, tokenizer.sizes)
    return dedup_within(codes, found.vectors, tokenizer.cpu(), taken)


def relative_error(tokenizer: ItemTokenizer, found: ItemVectorRows, codes: Codes) -> float:
    """Squared error of what the codes [num_rows, num_levels] stand for, over the squared length of the vectors."""
    device = next(iter(tokenizer.books)).device
    error = length = 0.0
    for first in range(0, len(codes), ENCODE_ROWS):
        rows = np.flatnonzero(found.has_vector[first : first + ENCODE_ROWS]) + first
        vectors = torch.from_numpy(found.vectors[rows]).to(device)
        picked = torch.from_numpy(codes[rows].astype(np.int64)).to(device)
        error += float((vectors - tokenizer.decode(picked)).double().square().sum())
        length += float(vectors.double().square().sum())
    return error / length if length else 0.0


def with_padding(codes: Codes) -> Codes:
    """The codes with the row of the padding before them."""
    padding = np.full((1, codes.shape[1]), -1, dtype=np.int32)
    return np.concatenate([padding, codes.astype(np.int32)])


def write_health(health: Health, name: str, found: tuple[str, ...], folder: Path) -> None:
    """Writes health.json and the page."""
    values: dict[str, Any] = {"health": health.as_json(), "accepted": list(found)}
    (folder / HEALTH_FILE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    write_atomically(folder / PAGE_FILE, health_page(health, name, found))
