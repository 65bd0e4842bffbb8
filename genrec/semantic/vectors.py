"""Item vectors for a tokenizer: from whatever `semantic_ids.vectors` names into one memory-mapped file.

Each kind gives blocks of rows in index order; `write_vectors` checks them and writes them down. What a kind must know
again to give new items vectors of the same space (`--extend`) is its state: small facts, and tensors if there are any.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from genrec.config import (
    ExperimentConfig,
    ExportVectors,
    ItemVectorsOfSet,
    SemanticIdsConfig,
    TextVectors,
    TfidfVectors,
    VectorFile,
)
from genrec.data.log_files import expand_path
from genrec.data.manifest import file_digest
from genrec.data.schema import ITEM_VECTORS_FILE
from genrec.data.stored_set import at_hand
from genrec.errors import ConfigError, DataError
from genrec.inference.export import MODEL_FILE, check_unseen, find_export, read_export
from genrec.inference.load import load_model
from genrec.semantic.text_encoder import EncodedTexts
from genrec.semantic.tokenizers_rows import Progress, quiet
from genrec.semantic.vectors_texts import item_texts
from genrec.semantic.vectors_tfidf import Tfidf, fit_tfidf
from genrec.semantic.vocabulary import item_ids

Floats = npt.NDArray[np.float32]

BLOCK_ROWS = 16_384
TABLE_WEIGHT = "item_table.weight"


@dataclass(frozen=True, slots=True)
class VectorState:
    """What gives new items vectors of the same space: `facts` are JSON, `tensors` go to safetensors."""

    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class VectorSource(Protocol):
    """Vectors of the items of a prepared set."""

    @property
    def dim(self) -> int:
        """Numbers in a vector."""

    @property
    def state(self) -> VectorState:
        """What new items need."""

    def blocks(self, first: int) -> Iterator[tuple[int, Floats]]:
        """Row and vectors [num_rows, dim] of the items from row `first` on, in order; zeros: this one has none."""

    def whence(self, row: int) -> str:
        """Where the vector of the item of that row was read."""


@dataclass(frozen=True, slots=True)
class ItemVectorRows:
    """`vectors` float32 [num_items - first, dim], memory-mapped; `has_vector` says which rows hold something."""

    vectors: Floats
    has_vector: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Rows of the matrix in the file `path`: `places` [num_items], -1 where an item has none."""

    path: Path
    matrix: npt.NDArray[Any]
    places: npt.NDArray[np.int64]
    state: VectorState

    @property
    def dim(self) -> int:
        return int(self.matrix.shape[1])

    def blocks(self, first: int) -> Iterator[tuple[int, Floats]]:
        for start in range(first, len(self.places), BLOCK_ROWS):
            places = self.places[start : start + BLOCK_ROWS]
            vectors = np.asarray(self.matrix[np.maximum(places, 0)], dtype=np.float32)
            vectors[places < 0] = 0
            yield start, vectors

    def whence(self, row: int) -> str:
        return f"row {self.places[row]} of {self.path}"


@dataclass(frozen=True, slots=True)
class _Words:
    """TF-IDF vectors of texts."""

    texts: pa.Array
    tfidf: Tfidf
    state: VectorState

    @property
    def dim(self) -> int:
        return int(self.tfidf.axes.shape[1])

    def blocks(self, first: int) -> Iterator[tuple[int, Floats]]:
        for start in range(first, len(self.texts), BLOCK_ROWS):
            yield start, self.tfidf.vectors(self.texts.slice(start, BLOCK_ROWS))

    def whence(self, row: int) -> str:
        return f"made of the text {self.texts[row].as_py()[:80]!r}"


def open_vectors(
    config: ExperimentConfig, wanted: SemanticIdsConfig, state: VectorState | None = None, progress: Progress = quiet
) -> VectorSource:
    """The source that `semantic_ids.vectors` names; with `state` it gives vectors of the space of an earlier map.

    Raises DataError when it cannot be read, or gives vectors of another space than `state`.
    """
    prepared, vectors = at_hand(config.data.prepared), wanted.vectors
    source: VectorSource
    if isinstance(vectors, TfidfVectors):
        source = _words(vectors, prepared, config.seed, state)
    elif isinstance(vectors, TextVectors):
        texts = item_texts(prepared, vectors.path, vectors.item, vectors.columns)
        encoded = EncodedTexts.of(vectors, texts, Path(f"{wanted.path}.vectors"), progress)
        source = _Encoded(encoded, VectorState({"dim": encoded.dim, "encoder": encoded.digest}))
    elif isinstance(vectors, ExportVectors):
        source = _of_export(vectors, config, prepared)
    elif isinstance(vectors, VectorFile):
        source = _of_file(vectors, prepared)
    else:
        source = _of_set(vectors, prepared)
    for name, before in (state.facts if state else {}).items():
        if source.state.facts.get(name) != before:
            raise DataError(
                f"New items need vectors of the space that the map was made in: {name} was {before!r} and is "
                f"{source.state.facts.get(name)!r}; bring the old vectors back, or make the map again with "
                "`genrec tokenize CONFIG --overwrite`."
            )
    return source


def write_vectors(source: VectorSource, path: Path, first: int, ids: pa.Array, normalize: bool) -> ItemVectorRows:
    """Writes the vectors of the items `ids` from row `first` on to a .npy file and maps it into memory.

    Raises DataError when a vector holds something that is no number.
    """
    shape = (len(ids) - first, source.dim)
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    has_vector = np.zeros(len(table), dtype=np.bool_)
    for start, vectors in source.blocks(first):
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            row = start + int(bad.argmax())
            raise DataError(
                f"The vector of item {ids[row].as_py()!r} (index {row + 1}), {source.whence(row)}, holds a value that "
                "is no number; mend what semantic_ids.vectors reads."
            )
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        if normalize:
            vectors = vectors / np.where(lengths > 0, lengths, 1).astype(np.float32)[:, None]
        rows = slice(start - first, start - first + len(vectors))
        table[rows] = vectors
        has_vector[rows] = lengths > 0
    table.flush()
    # Copy-on-write, because torch wants arrays that may be written; nothing is.
    return ItemVectorRows(np.load(path, mmap_mode="c", allow_pickle=False), has_vector)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Vectors of a sentence encoder."""

    encoded: EncodedTexts
    state: VectorState

    @property
    def dim(self) -> int:
        return self.encoded.dim

    def blocks(self, first: int) -> Iterator[tuple[int, Floats]]:
        return self.encoded.blocks(first)

    def whence(self, row: int) -> str:
        return f"made by the encoder, of the text {self.encoded.texts[row].as_py()[:80]!r}"


def _words(config: TfidfVectors, prepared: Path, seed: int, state: VectorState | None) -> VectorSource:
    texts = item_texts(prepared, config.path, config.item, config.columns)
    if state is None:
        tfidf = fit_tfidf(config, texts, seed)
    else:
        words = bytes(state.tensors["words"].tolist()).decode().split("\n")
        tfidf = Tfidf(pa.array(words, pa.large_string()), state.tensors["rarity"], state.tensors["axes"])
    words_bytes = torch.tensor(list("\n".join(tfidf.words.to_pylist()).encode()), dtype=torch.uint8)
    tensors = {"words": words_bytes, "rarity": tfidf.rarity, "axes": tfidf.axes}
    return _Words(texts, tfidf, VectorState({"dim": int(tfidf.axes.shape[1])}, tensors))


def _of_set(config: ItemVectorsOfSet, prepared: Path) -> VectorSource:
    path = prepared / ITEM_VECTORS_FILE
    if not path.exists():
        raise ConfigError(
            f"semantic_ids.vectors.name is {config.name} and {prepared} has no item vectors; name their file in "
            "data.item_vectors and run `genrec prepare CONFIG --overwrite`, or use other vectors."
        )
    matrix = _mapped(path)
    return _Gathered(path, matrix, np.arange(1, len(matrix)), VectorState({"dim": int(matrix.shape[1])}))


def _of_file(config: VectorFile, prepared: Path) -> VectorSource:
    path = Path(expand_path(config.path))
    matrix = _mapped(path)
    ids = item_ids(prepared)
    if config.ids is not None:
        listed = Path(expand_path(config.ids))
        try:
            keys = pa.array(listed.read_text(encoding="utf-8").splitlines(), pa.large_string())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{listed} cannot be read ({error}); set semantic_ids.vectors.ids to a text file."
            ) from error
        if len(keys) != len(matrix):
            raise DataError(f"{listed} has {len(keys):,} ids and {path} {len(matrix):,} vectors; they must be as many.")
        places = pc.index_in(ids, value_set=keys).fill_null(-1).to_numpy().astype(np.int64)
    else:
        places = _numbers(ids, config) - config.first_id
        places[(places < 0) | (places >= len(matrix))] = -1
    if (places < 0).all():
        raise DataError(
            f"{path} has a vector for none of the {len(ids):,} items; set semantic_ids.vectors.first_id or "
            "semantic_ids.vectors.ids."
        )
    return _Gathered(path, matrix, places, VectorState({"dim": int(matrix.shape[1])}))


def _numbers(ids: pa.Array, config: VectorFile) -> npt.NDArray[np.int64]:
    try:
        numbers: npt.NDArray[np.int64] = ids.cast(pa.int64()).to_numpy().copy()
    except pa.ArrowInvalid as error:
        raise ConfigError(
            f"The items' ids are no whole numbers ({error}), so the rows of {config.path} need names; list their ids "
            "in a text file and set semantic_ids.vectors.ids."
        ) from error
    return numbers


def _of_export(wanted: ExportVectors, config: ExperimentConfig, prepared: Path) -> VectorSource:
    folder = find_export(expand_path(wanted.path))
    export = read_export(folder)
    check_unseen(config, export, wanted.path, "semantic_ids.vectors.path")
    weight = export.state_dict.get(TABLE_WEIGHT)
    if export.vectors is not None:  # the table holds what ids add to the vectors; as settled it is what is served
        weight = load_model(folder).model.item_table.weight
    if weight is None:
        raise DataError(
            f"The model in {folder} has no table of item vectors ({TABLE_WEIGHT}); set semantic_ids.vectors.path to a "
            "run of another model, a SASRec for example."
        )
    known = export.items.sort_by("index")["item"].cast(pa.string()).cast(pa.large_string()).combine_chunks()
    rows = pc.index_in(item_ids(prepared), value_set=known).fill_null(-1).to_numpy().astype(np.int64)
    places = np.where(rows >= 0, rows + 1, -1)
    facts = {"dim": int(weight.shape[1]), "model": file_digest(folder / MODEL_FILE)}
    return _Gathered(folder / MODEL_FILE, weight.detach().float().numpy(), places, VectorState(facts))


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        matrix: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); set semantic_ids.vectors.path to a .npy file.") from error
    if not isinstance(matrix, np.ndarray):
        raise DataError(f"{path} holds several arrays (.npz); set semantic_ids.vectors.path to a .npy file with one.")
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating) or 0 in matrix.shape:
        raise DataError(f"{path} must hold vectors of floats [num_rows, dim], not {matrix.dtype} {list(matrix.shape)}.")
    return matrix
