"""The folder of a map as a whole: made beside its place and moved there in one rename, so that it is there or not.

    MAP/
      codes.npy, map.json               see ids.py; map.json is written last
      tokenizer.safetensors, .json      codebooks, and the way into their space and back
      vectors.safetensors, vectors.json what new items need to get vectors of the same space
      health.json, health.html          how good the codes are

`.MAP.tokenizing` is the work folder, `.MAP.replaced` what an overwritten map is called for the moment between two
renames; `MAP.vectors/` keeps what a text encoder has made and may be deleted.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from genrec.data.manifest import file_digest
from genrec.errors import DataError
from genrec.file_lock import locked
from genrec.semantic.ids import CODES_FILE, MAP_FILE
from genrec.semantic.tokenizers import SHAPE_FILE, WEIGHTS_FILE
from genrec.semantic.vectors import VectorState

HEALTH_FILE, PAGE_FILE = "health.json", "health.html"
SPACE_FILE, SPACE_TENSORS = "vectors.json", "vectors.safetensors"

_FOR_NEW_ITEMS = (SHAPE_FILE, WEIGHTS_FILE, SPACE_FILE, SPACE_TENSORS)
_OURS = {CODES_FILE, MAP_FILE, HEALTH_FILE, PAGE_FILE, *_FOR_NEW_ITEMS}


class MapExistsError(DataError):
    """A map is there already."""


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raises MapExistsError when a map is there already, DataError when the folder holds anything else."""
    if not target.exists():
        return
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in _OURS) if target.is_dir() else ["it"]
    if foreign:
        raise DataError(
            f"{target} is no folder of a map ({', '.join(foreign[:3])}), and a map would replace it; set "
            "semantic_ids.path to a folder of its own."
        )
    if (target / MAP_FILE).exists() and not overwrite:
        raise MapExistsError(
            f"{target} holds a map already; run `genrec tokenize CONFIG --extend` to give new items codes, or "
            "`genrec tokenize CONFIG --overwrite` to make it again, after which no trained model fits it."
        )


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, deleted at the end; one process at a time.

    Raises DataError when it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file on the way, a read-only disk, ...
        raise _unwritable(target, error) from error
    try:
        with locked(target.parent / f".{target.name}.lock", f"making the map {target}"):
            _restore(target)
            work = target.parent / f".{target.name}.tokenizing"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except PermissionError as error:
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: OSError) -> DataError:
    return DataError(f"{target} cannot be written ({error}); set semantic_ids.path to another folder.")


def publish(finished: Path, target: Path) -> None:
    """Moves the `finished` folder to `target`; what was there goes away."""
    replaced = _replaced(target)
    if target.exists():
        target.rename(replaced)
    finished.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def _restore(target: Path) -> None:
    """Puts back the map that a process had moved aside when it was killed inside `publish`."""
    replaced = _replaced(target)
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        replaced.rename(target)


def _replaced(target: Path) -> Path:
    return target.parent / f".{target.name}.replaced"


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that give new items codes, by name; published codes have none."""
    return {name: file_digest(folder / name) for name in _FOR_NEW_ITEMS if (folder / name).is_file()}


def check_files(folder: Path, told: Mapping[str, str]) -> None:
    """Raises DataError unless the files that give new items codes are those with the digests `told`."""
    found = file_digests(folder)
    other = [name for name, digest in told.items() if found.get(name) != digest]
    if other:
        raise DataError(
            f"{folder} has other content in {' and '.join(other)} than was saved there, so new items cannot get codes; "
            "copy the whole folder again, or make the map again with `genrec tokenize CONFIG --overwrite`."
        )


def save_space(state: VectorState, folder: Path) -> None:
    """Writes what new items need to get vectors of the same space."""
    (folder / SPACE_FILE).write_text(json.dumps(state.facts, indent=1) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, folder / SPACE_TENSORS)


def load_space(folder: Path) -> VectorState:
    """What `save_space` wrote; raises DataError when it cannot be read."""
    try:
        facts = json.loads((folder / SPACE_FILE).read_text(encoding="utf-8"))
        return VectorState(dict(facts), load_file(folder / SPACE_TENSORS))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise DataError(
            f"{folder} does not say what its vectors were made of ({error}); copy the whole folder again, or make the "
            "map again with `genrec tokenize CONFIG --overwrite`."
        ) from error
