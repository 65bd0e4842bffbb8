"""Sentence vectors from an encoder that lies on this machine, in the layout of sentence-transformers.

    config.json             a BERT: its sizes                  tokenizer.json     read by the `tokenizers` library
    model.safetensors       its weights                        modules.json       what follows: pooling, length 1
    1_Pooling/config.json   how tokens become one vector       sentence_bert_config.json   the longest text

The forward pass is BERT's (arXiv 1810.04805): embeddings, then layers of attention and MLP, each with a residual and a
norm after it. Nothing is downloaded. Vectors are kept in shards, each a file that appears when it is complete, so a
killed run goes on, and a catalogue that has grown encodes what is new.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from genrec.config import TextVectors
from genrec.data.log_files import expand_path
from genrec.data.manifest import file_digest
from genrec.errors import ConfigError, DataError
from genrec.semantic.tokenizers_rows import Progress, pick_device

Floats = npt.NDArray[np.float32]
Split = Callable[[Sequence[str]], list[list[int]]]
"""Texts to token ids, with the special ones, cut to the longest length."""

_FILES = ("config.json", "tokenizer.json", "model.safetensors")
_FOLLOWS = ("Transformer", "Pooling", "Normalize")


def find_encoder(name: str) -> Path:
    """The folder of an encoder: `name` itself, or the one inside the installed package `name`, which is not imported.

    Raises ConfigError when there is neither.
    """
    folder = Path(expand_path(name))
    if all((folder / file).is_file() for file in _FILES):
        return folder
    package = importlib.util.find_spec(name.replace("-", "_")) if name.replace("-", "_").isidentifier() else None
    for place in (package.submodule_search_locations or []) if package is not None else []:
        for config in sorted(Path(place).rglob("tokenizer.json")):
            if all((config.parent / file).is_file() for file in _FILES):
                return config.parent
    raise ConfigError(
        f"semantic_ids.vectors.encoder ({name}) is neither a folder with {', '.join(_FILES)} nor an installed package "
        "that holds one; copy a sentence-transformers model to this machine and name its folder."
    )


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What config.json and its neighbours say of an encoder."""

    num_layers: int
    num_heads: int
    dim: int
    norm_eps: float
    max_tokens: int
    pooling: str
    normalize: bool

    @classmethod
    def read(cls, folder: Path, max_tokens: int) -> "EncoderShape":
        """The shape; raises ConfigError for a kind of encoder that is not known here, DataError for a damaged one."""
        try:
            return cls._read(folder, max_tokens)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"The encoder in {folder} does not say its shape ({error!r}); copy its folder again."
            ) from error

    @classmethod
    def _read(cls, folder: Path, max_tokens: int) -> "EncoderShape":
        config = _json(folder / "config.json")
        sentence = _json(folder / "sentence_bert_config.json", {})
        modules = [str(module["type"]).rpartition(".")[2] for module in _json(folder / "modules.json", [])]
        known = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        strange = [f"{name} {config[name]}" for name, wanted in known.items() if config.get(name, wanted) != wanted]
        strange += [f"module {name}" for name in modules if name not in _FOLLOWS]
        pooling = _pooling(folder)
        if strange or pooling is None:
            raise ConfigError(
                f"The encoder in {folder} is of a kind that genrec cannot run ({', '.join(strange) or 'its pooling'}): "
                "it reads BERT with mean or cls pooling; make the vectors elsewhere and use semantic_ids.vectors.name: "
                "file."
            )
        return cls(
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            dim=config["hidden_size"],
            norm_eps=config.get("layer_norm_eps", 1e-12),
            max_tokens=min(max_tokens, sentence.get("max_seq_length") or max_tokens, config["max_position_embeddings"]),
            pooling=pooling,
            normalize="Normalize" in modules,
        )


def _pooling(folder: Path) -> str | None:
    told = _json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    modes = [name.removeprefix("pooling_mode_") for name, on in told.items() if on is True and "mode" in name]
    return {"mean_tokens": "mean", "cls_token": "cls"}.get(modes[0]) if len(modes) == 1 else None


def _json(path: Path, missing: Any = None) -> Any:
    if missing is not None and not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy the encoder's folder again.") from error


class SentenceEncoder:
    """A BERT that turns texts into vectors [num_texts, dim]."""

    def __init__(self, shape: EncoderShape, weights: dict[str, Tensor], split: Split) -> None:
        self.shape, self.split = shape, split
        self.device = pick_device()
        self.weights = {name.removeprefix("bert."): value.float().to(self.device) for name, value in weights.items()}

    @torch.no_grad()
    def encode(self, texts: Sequence[str], texts_per_batch: int) -> Floats:
        """Vectors [num_texts, dim]; texts of about the same length share a batch. An empty text has zeros."""
        vectors = np.zeros((len(texts), self.shape.dim), dtype=np.float32)
        tokens = self.split(texts)
        order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(tokens[i]))
        for first in range(0, len(order), texts_per_batch):
            places = order[first : first + texts_per_batch]
            vectors[places] = self._batch([tokens[place] for place in places]).cpu().numpy()
        return vectors

    def _batch(self, tokens: list[list[int]]) -> Tensor:
        longest = max(map(len, tokens))
        ids = torch.zeros(len(tokens), longest, dtype=torch.int64)
        real = torch.zeros(len(tokens), longest, dtype=torch.bool)
        for row, line in enumerate(tokens):
            ids[row, : len(line)] = torch.tensor(line)
            real[row, : len(line)] = True
        ids, real = ids.to(self.device), real.to(self.device)
        hidden = self._norm(
            self.weights["embeddings.word_embeddings.weight"][ids]
            + self.weights["embeddings.position_embeddings.weight"][:longest]
            + self.weights["embeddings.token_type_embeddings.weight"][0],
            "embeddings.LayerNorm",
        )
        for layer in range(self.shape.num_layers):
            hidden = self._layer(hidden, real, f"encoder.layer.{layer}")
        if self.shape.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
        return F.normalize(pooled, dim=1) if self.shape.normalize else pooled

    def _layer(self, hidden: Tensor, real: Tensor, name: str) -> Tensor:
        num, length, dim = hidden.shape
        query, key, value = (
            self._linear(hidden, f"{name}.attention.self.{part}")
            .view(num, length, self.shape.num_heads, dim // self.shape.num_heads)
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None, :])
        mixed = mixed.transpose(1, 2).reshape(num, length, dim)
        hidden = self._norm(
            hidden + self._linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm"
        )
        inner = F.gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, values: Tensor, name: str) -> Tensor:
        return F.linear(values, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, values: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(values, (self.shape.dim,), weight, bias, self.shape.norm_eps)


def load_encoder(folder: Path, max_tokens: int) -> SentenceEncoder:
    """The encoder in a folder; raises ConfigError where `tokenizers` is missing, DataError for a damaged folder."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(
            "semantic_ids.vectors.name: text needs the package `tokenizers`; run `pip install genrec[text]`."
        ) from error
    shape = EncoderShape.read(folder, max_tokens)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(shape.max_tokens)
        tokenizer.no_padding()
        weights = load_file(folder / "model.safetensors")
        encoder = SentenceEncoder(
            shape, weights, lambda texts: [found.ids for found in tokenizer.encode_batch(list(texts))]
        )
        encoder.encode(["a"], 1)  # weights of other names or sizes are found before a catalogue is begun
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise DataError(f"The encoder in {folder} cannot be read ({error!r}); copy its folder again.") from error
    return encoder


@dataclass(frozen=True, slots=True)
class Shard:
    """A stretch of texts and the file that their vectors go to."""

    texts: list[str]
    path: str

    def write(self, encoder: SentenceEncoder, texts_per_batch: int) -> None:
        """Encodes the texts; the file appears when it is complete."""
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.npy")
        np.save(draft, encoder.encode(self.texts, texts_per_batch))
        draft.replace(path)

    def read(self) -> Floats:
        """The vectors [num_texts, dim]; raises DataError when the file was cut, by a machine that went down."""
        try:
            vectors: Floats = np.load(self.path, allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"{self.path} is damaged ({error}); delete it, and it is encoded again.") from error
        return vectors


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Texts and their encoder; what is encoded lies in `folder`, which may be deleted at any time."""

    config: TextVectors
    texts: pa.Array
    encoder: Path
    folder: Path
    dim: int
    digest: str
    progress: Progress

    @classmethod
    def of(cls, config: TextVectors, texts: pa.Array, folder: Path, progress: Progress) -> "EncodedTexts":
        """Finds the encoder and looks at its shape; encodes nothing yet."""
        encoder = find_encoder(config.encoder)
        shape = EncoderShape.read(encoder, config.max_tokens)
        digest = hashlib.sha256(repr(shape).encode())
        for name in _FILES:
            digest.update(file_digest(encoder / name).encode())
        return cls(config, texts, encoder, folder, shape.dim, digest.hexdigest(), progress)

    def blocks(self, first: int) -> Iterator[tuple[int, Floats]]:
        """Row and vectors of the texts from row `first` on; encodes what is not there yet."""
        size = self.config.texts_per_shard
        starts = range(first // size * size, len(self.texts), size)
        shards = [self._shard(start) for start in starts]
        missing = [shard for shard in shards if not Path(shard.path).is_file()]
        self.progress("encode texts", len(shards) - len(missing), len(shards))
        for done, _ in enumerate(self._encode(missing), start=len(shards) - len(missing) + 1):
            self.progress("encode texts", done, len(shards))
        for start, found in zip(starts, shards, strict=True):
            skipped = max(first - start, 0)
            yield start + skipped, found.read()[skipped:]

    def _encode(self, missing: list[Shard]) -> Iterator[str]:
        if not missing:
            return
        if self.config.workers > 1:
            from genrec.semantic.ray_encode import encode_on_ray

            yield from encode_on_ray(missing, str(self.encoder), self.config)
            return
        encoder = load_encoder(self.encoder, self.config.max_tokens)
        for shard in missing:
            shard.write(encoder, self.config.texts_per_batch)
            yield shard.path

    def _shard(self, start: int) -> Shard:
        texts = self.texts.slice(start, self.config.texts_per_shard).to_pylist()
        digest = hashlib.sha256(self.digest.encode())
        for text in texts:
            digest.update(len(text).to_bytes(8, "little") + text.encode())
        return Shard(texts, str(self.folder.absolute() / f"{start:010d}-{digest.hexdigest()[:24]}.npy"))
