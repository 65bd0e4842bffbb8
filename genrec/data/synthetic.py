"""Writes the synthetic listening log, block by block: memory does not grow with the number of events or users.

    FOLDER/log/part-00000.parquet   user, item, time (seconds), action, value (seconds played); by user, then time
    FOLDER/items.parquet            item, type, title

What the log is drawn from is in `synthetic_world.py`, the drawing in `synthetic_users.py`, and the best metrics that
can be reached on it in `synthetic_best.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import SyntheticSource
from genrec.data.synthetic_best import best_known
from genrec.data.synthetic_users import ACTIONS, UserBlock, UserSampler, num_blocks
from genrec.data.synthetic_world import ITEM_TYPES, World, build_world
from genrec.errors import DataError

BLOCKS_PER_SHARD = 8  # about 4 million events, 25 MB

LOG_SCHEMA = pa.schema(
    [
        pa.field("user", pa.int64(), nullable=False),
        pa.field("item", pa.int64(), nullable=False),
        pa.field("time", pa.int64(), nullable=False),
        pa.field("action", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("value", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One file of the log of a source."""

    source: SyntheticSource
    shard: int
    path: Path


Run = Callable[[Callable[[ShardTask], int], Sequence[ShardTask]], Iterable[int]]
"""Calls a function for every task, in any place, and hands out what it returns in the order of the tasks."""


def write_log(
    source: SyntheticSource, folder: Path, progress: Callable[[int], None] | None = None, run: Run = map
) -> dict[str, float]:
    """Writes the log and the item table into `folder`, and returns the best known metrics of the test events.

    `progress` is called with the number of events of each file that has been written. `run` may write files side by
    side; the bytes are the same. The metrics are those of `synthetic_best.best_known`: `hr@10`, `ndcg@10`, ... of the
    last event of every user, the whole catalogue ranked. Raises DataError when the folder cannot be written.
    """
    world = build_world(source)
    paths = [folder / "log" / f"part-{shard:05d}.parquet" for shard in range(num_shards(source))]
    try:
        (folder / "log").mkdir(parents=True, exist_ok=True)
        for left_over in set((folder / "log").glob("part-*.parquet")) - set(paths):
            left_over.unlink()
        pq.write_table(items_table(world), folder / "items.parquet")
        for num_events in run(_run_shard, [ShardTask(source, shard, path) for shard, path in enumerate(paths)]):
            if progress is not None:
                progress(num_events)
    except OSError as error:
        raise DataError(
            f"The synthetic log cannot be written to {folder} ({error}); free space or choose another folder."
        ) from error
    return best_known(source, world)


def _run_shard(task: ShardTask) -> int:
    return write_shard(task.source, build_world(task.source), task.shard, task.path)


def num_shards(source: SyntheticSource) -> int:
    """Files of the log."""
    return -(-num_blocks(source) // BLOCKS_PER_SHARD)


def write_shard(source: SyntheticSource, world: World, shard: int, path: Path) -> int:
    """Writes file `shard` of the log to `path`, and returns its number of events.

    Any order of shards, on any machine, gives the same files.
    """
    sampler = UserSampler(source, world)
    blocks = range(shard * BLOCKS_PER_SHARD, min((shard + 1) * BLOCKS_PER_SHARD, num_blocks(source)))
    num_events = 0
    # Without the stored Arrow schema, `action` is read back as plain strings.
    with pq.ParquetWriter(
        path, LOG_SCHEMA, compression="zstd", store_schema=False, use_dictionary=["user", "item", "action"]
    ) as writer:
        for block in blocks:
            table = events_table(sampler.draw(block))
            writer.write_table(table)
            num_events += table.num_rows
    return num_events


def events_table(block: UserBlock) -> pa.Table:
    """The events of a block as rows of the log, by user and then by time."""
    order = np.argsort(block.users)
    lengths = block.lengths[order]
    held = np.arange(len(block.items)) < lengths[:, None]  # [num_users, num_steps]
    codes = pa.array(block.actions[:, order].T[held].astype(np.int8))
    return pa.table(
        [
            pa.array(np.repeat(block.users[order], lengths)),
            pa.array(block.items[:, order].T[held]),
            pa.array(block.times[:, order].T[held]),
            pa.DictionaryArray.from_arrays(codes, pa.array(ACTIONS)),
            pa.array(block.played_s[:, order].T[held]),
        ],
        schema=LOG_SCHEMA,
    )


def items_table(world: World) -> pa.Table:
    """One row for every item of the catalogue: item, type, title."""
    collection = world.collection_of
    kind = world.item_type[collection]
    number = np.arange(world.num_items) - world.first[collection] + 1
    titles = [
        f"{ITEM_TYPES[k].collection} {c + 1}, {ITEM_TYPES[k].name} {n}"
        for k, c, n in zip(kind.tolist(), collection.tolist(), number.tolist(), strict=True)
    ]
    names = pa.array([item_type.name for item_type in ITEM_TYPES])
    return pa.table({"item": np.arange(world.num_items), "type": names.take(pa.array(kind)), "title": pa.array(titles)})
