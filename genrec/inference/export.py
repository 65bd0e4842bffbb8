"""The published model: safetensors weights, the config, the item ids, and what is known about them. Never a pickle.

    export/
      model.safetensors   weights
      config.yaml         the resolved config
      items.parquet       a copy of the prepared set's item table: index -> original id
      item_vectors.npy    the set's item vectors, where the model reads them: the same file on the disk where it can be
      codes.npy, map.json the map that the model writes codes of, where it does (genrec/semantic/ids.py)
      export.json         what the trainer says about it (step, metric), and the bytes of the files above

Writing replaces the folder as a whole, which no single rename can do once it exists: a complete new folder first gets
the name FOLDER.new, then FOLDER becomes FOLDER.old, then FOLDER.new becomes FOLDER, then FOLDER.old goes. Whenever the
writer is killed, the reader and the next writer find a complete one under these three names.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genrec.config import ExperimentConfig
from genrec.data.item_vectors import ItemVectors, vectors_for
from genrec.data.schema import ITEM_VECTORS_FILE, ITEMS_FILE
from genrec.errors import ConfigError, DataError, RunError
from genrec.run_dir import load_saved_config, run_dir_at
from genrec.semantic.ids import SemanticIds, load_semantic_ids

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
INFO_FILE = "export.json"
READ_ATTEMPTS = 3  # an export may be replaced while it is read


class Export(NamedTuple):
    """A published model as it is on disk: `items` has the columns of `items.parquet`, `info` what the trainer said.

    `vectors` are those of its items, mapped into memory; None when the model reads none. `semantic_ids` is the map that
    it writes codes of; None when it writes none.
    """

    config: ExperimentConfig
    state_dict: dict[str, Tensor]
    items: pa.Table
    info: dict[str, Any]
    vectors: ItemVectors | None
    semantic_ids: SemanticIds | None = None


def write_export(
    folder: str | Path,
    state_dict: Mapping[str, Tensor],
    config: ExperimentConfig,
    items_path: str | Path,
    info: Mapping[str, Any],
    semantic_ids: SemanticIds | None = None,
) -> None:
    """Replaces the export in `folder` by this model: a kill at any time leaves the old one or this one, whole.

    `info` is JSON: at least `step`. Item vectors are taken from beside `items_path`, `semantic_ids` is the model's map.
    Only one process writes. Raises RunError when the disk refuses.
    """
    target = Path(folder)
    draft, new, old = _beside(target, "tmp"), _beside(target, "new"), _beside(target, "old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        save_file(_unshared(state_dict), draft / MODEL_FILE, metadata={"format": "pt"})
        (draft / CONFIG_FILE).write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "utf-8")
        shutil.copyfile(items_path, draft / ITEMS_FILE)
        if config.inputs.item_vectors is not None:
            _link(Path(items_path).with_name(ITEM_VECTORS_FILE), draft / ITEM_VECTORS_FILE)
        if semantic_ids is not None:
            semantic_ids.save(draft)
        num_bytes = {path.name: path.stat().st_size for path in sorted(draft.iterdir())}
        (draft / INFO_FILE).write_text(json.dumps({"info": dict(info), "num_bytes": num_bytes}, indent=1), "utf-8")
        for path in [*draft.iterdir(), draft]:
            _sync(path)
        _settle(target)
        draft.rename(new)
        if target.exists():
            target.rename(old)
        new.rename(target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise RunError(
            f"The model cannot be exported to {target} ({error}); the export before it is kept: free some disk space "
            "or choose another runs_dir, and run the command again."
        ) from error


def find_export(path: str | Path) -> Path:
    """The export folder that `path` means: itself, or the one inside a run directory."""
    itself = Path(path)
    if (itself / INFO_FILE).is_file() or (not itself.exists() and _complete(itself) is not None):
        return itself
    run = run_dir_at(path)
    run.pull()
    return run.export_path


def read_export(folder: str | Path) -> Export:
    """The export in `folder`; raises DataError when there is none or a file of it is missing or damaged."""
    target = Path(folder)
    for _ in range(READ_ATTEMPTS):
        source = _complete(target)
        if source is None:
            raise DataError(f"{target} is not an export (no {INFO_FILE}); give the folder of a run that has validated.")
        before = _info_bytes(source)
        try:
            export, problem = _read(source, before), None
        except DataError as error:
            export, problem = None, error
        if before != _info_bytes(_complete(target)):
            continue  # replaced meanwhile: what was read may be of both
        if problem is not None:
            raise problem
        if export is not None:
            return export
    raise DataError(f"The export {target} is replaced faster than it can be read; try again, or copy it first.")


def check_unseen(config: ExperimentConfig, export: Export, path: str, setting: str) -> None:
    """Raises ConfigError when the export has been trained on the events that a run of `config` validates on."""
    if export.config.refits and not config.refits:
        raise ConfigError(
            f"{setting} names {path}, which was refitted on validation events, and this run would choose its best step "
            "by them; name the run that was refitted, or set sequence.train_on=train+validation."
        )


def _read(source: Path, info_bytes: bytes) -> Export:
    try:
        saved = json.loads(info_bytes)
        info, num_bytes = dict(saved["info"]), dict(saved["num_bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source / INFO_FILE} is damaged; train again, or copy the whole folder.") from error
    for name, expected in num_bytes.items():
        path = source / name
        found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
        if found != f"{expected} bytes":
            raise DataError(f"{path} is {found} and should be {expected} bytes; train again, or copy the whole folder.")
    try:
        config = load_saved_config(source / CONFIG_FILE)
        items, vectors = pq.read_table(source / ITEMS_FILE), vectors_for(config, source)
        ids = load_semantic_ids(source) if config.writes_codes else None
        return Export(config, load_file(source / MODEL_FILE), items, info, vectors, ids)
    except (OSError, SafetensorError, pa.ArrowException, ConfigError) as error:
        raise DataError(f"The export {source} is damaged ({error}); train again, or copy the whole folder.") from error


def _info_bytes(source: Path | None) -> bytes:
    """The content of export.json; nothing when the folder has just been renamed."""
    try:
        return (source / INFO_FILE).read_bytes() if source is not None else b""
    except FileNotFoundError:
        return b""


def _complete(target: Path) -> Path | None:
    """Where the newest complete export is: a swap may have been cut between two renames."""
    return next(
        (p for p in (target, _beside(target, "new"), _beside(target, "old")) if (p / INFO_FILE).is_file()), None
    )


def _settle(target: Path) -> None:
    """Ends a swap that was cut: the newest complete folder gets its name, the others go."""
    source = _complete(target)
    if source is not None and source != target:
        shutil.rmtree(target, ignore_errors=True)
        source.rename(target)
    for name in ("new", "old"):
        shutil.rmtree(_beside(target, name), ignore_errors=True)


def _unshared(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors; one that shares memory with an earlier one is copied, as safetensors stores no ties."""
    tensors: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in state_dict.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in known:
            plain = plain.clone()
        known.add(plain.untyped_storage().data_ptr())
        tensors[name] = plain
    return tensors


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, because it never changes; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f"{target.name}.{suffix}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
