"""Texts encoded on Ray: a Ray Data job whose actors each load the encoder once and write finished shards.

Shards are files of a folder that all machines see, so what comes back is their names only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genrec.config import TextVectors
from genrec.data.ray_session import ensure_ray
from genrec.semantic.text_encoder import Shard, load_encoder


class _Actor:
    """One encoder in a process of its own."""

    def __init__(self, folder: str, max_tokens: int, texts_per_batch: int) -> None:
        self.encoder = load_encoder(Path(folder), max_tokens)
        self.texts_per_batch = texts_per_batch

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        Shard(list(row["texts"]), row["path"]).write(self.encoder, self.texts_per_batch)
        return {"path": row["path"]}


def encode_on_ray(shards: Sequence[Shard], folder: str, config: TextVectors) -> Iterator[str]:
    """Encodes the shards on `config.workers` actors; yields the name of each finished file, in any order.

    `folder` is the encoder's, which every machine must see. Raises RunError when Ray does not start.
    """
    ensure_ray()
    import ray.data

    workers = min(config.workers, len(shards))
    rows = ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=len(shards))
    done = rows.map(
        _Actor,
        fn_constructor_args=(folder, config.max_tokens, config.texts_per_batch),
        concurrency=workers,
    )
    for row in done.iter_rows():
        yield row["path"]
