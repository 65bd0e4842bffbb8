"""A prepared set written by hand, and a config that reads it: fixtures `write_prepared` and `make_config`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec.config import ExperimentConfig, GlobalTimeSplit, LeaveOneOutSplit, config_from_dict
from genrec.data.manifest import (
    Manifest,
    VectorFacts,
    content_hash,
    describe_sequence_file,
    file_digest,
    load_manifest,
    save_manifest,
)
from genrec.data.schema import (
    ITEM_VECTORS_FILE,
    ITEMS_FILE,
    SEQUENCES_DIR,
    SEQUENCES_SCHEMA,
    USERS_FILE,
    VALUES,
    items_schema,
    sequences_schema,
    users_schema,
)
from genrec.data.split import history_ends
from genrec.overrides import apply_overrides


def write_prepared(
    folder: Path,
    sequences: Sequence[Sequence[int]],
    *,
    times: Sequence[Sequence[int]] | None = None,
    split: LeaveOneOutSplit | GlobalTimeSplit | None = None,
    num_items: int | None = None,
    rows_per_group: int = 1_000,
    num_files: int = 1,
    string_ids: bool = False,
) -> Path:
    """Writes `sequences` (item indices, a row a user) as a prepared set and returns its folder.

    Indices are kept as given, not ordered by count. Original ids are 10 * item index and 1000 + user index, or
    `item-10`, `user-1000`. Without `times` an event's time is its position. One action, `play`, everywhere.
    """
    split = split or LeaveOneOutSplit()
    timed = times if times is not None else [list(range(len(items))) for items in sequences]
    num_items = num_items or max(item for items in sequences for item in items)
    (folder / SEQUENCES_DIR).mkdir(parents=True)
    rows = [
        {"user": user, "length": len(items), "items": items, "times": timed[user], "actions": [1] * len(items)}
        for user, items in enumerate(sequences)
    ]
    files = []
    for number, part in enumerate(np.array_split(np.arange(len(rows)), num_files)):
        table = pa.Table.from_pylist([rows[index] for index in part], schema=SEQUENCES_SCHEMA)
        pq.write_table(table, folder / SEQUENCES_DIR / f"part-{number:05d}.parquet", row_group_size=rows_per_group)
        files.append(describe_sequence_file(folder, f"part-{number:05d}.parquet"))

    lengths = np.array([len(items) for items in sequences])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat_times = np.concatenate([np.asarray(row, dtype=np.int64) for row in timed])
    ends, _ = history_ends(split, "train", flat_times, offsets)
    count = np.bincount([item for items in sequences for item in items], minlength=num_items + 1)
    train = [item for items, end in zip(sequences, ends, strict=True) for item in items[:end]]
    train_count = np.bincount(train, minlength=num_items + 1)

    item_ids = [f"item-{10 * i}" if string_ids else 10 * i for i in range(1, num_items + 1)]
    user_ids = [f"user-{1000 + i}" if string_ids else 1000 + i for i in range(len(sequences))]
    id_type = pa.string() if string_ids else pa.int64()
    items_table = pa.table(
        [
            pa.array(range(1, num_items + 1), pa.int64()),
            pa.array(item_ids, id_type),
            pa.array(count[1:], pa.int64()),
            pa.array(train_count[1:], pa.int64()),
            pa.nulls(num_items, pa.string()),
            pa.nulls(num_items, pa.string()),
        ],
        schema=items_schema(id_type),
    )
    pq.write_table(items_table, folder / ITEMS_FILE)
    users = pa.table([pa.array(range(len(sequences)), pa.int64()), pa.array(user_ids, id_type)], users_schema(id_type))
    pq.write_table(users, folder / USERS_FILE)
    manifest = Manifest(
        num_users=len(sequences),
        num_items=num_items,
        num_events=int(lengths.sum()),
        num_train_events=len(train),
        has_times=times is not None,
        time_range=(int(flat_times.min()), int(flat_times.max())),
        actions=("play",),
        length_histogram={},
        split=split,
        files=tuple(files),
        config={},
        content_hash=content_hash(folder, files, split),
    )
    save_manifest(folder, manifest)
    load_manifest(folder)
    return folder


def set_actions(folder: Path, actions: Sequence[Sequence[int]], names: Sequence[str]) -> Path:
    """Gives the events of a set of one file these action codes, a row a user; code i is `names[i - 1]`."""
    lists = pa.array(actions, pa.list_(pa.uint8()))
    return _rewrite(folder, "actions", lists, actions=tuple(names))


def set_values(folder: Path, values: Sequence[Sequence[float]]) -> Path:
    """Gives the events of a set of one file these values, a row a user; NaN is unknown."""
    return _rewrite(folder, VALUES, pa.array(values, pa.list_(pa.float32())), has_values=True)


def _rewrite(folder: Path, column: str, lists: pa.Array, **changes: object) -> Path:
    manifest = load_manifest(folder)
    path = folder / manifest.files[0].path
    table = pq.read_table(path)
    columns = {name: table[name] for name in table.column_names} | {column: lists}
    table = pa.table(columns, schema=sequences_schema(values=VALUES in columns))
    pq.write_table(table, path, row_group_size=manifest.files[0].row_groups[0].rows)
    files = (describe_sequence_file(folder, path.name),)
    changes |= {"files": files, "content_hash": content_hash(folder, files, manifest.split)}
    save_manifest(folder, manifest.model_copy(update=changes))
    return folder


def give_vectors(folder: Path, vectors: np.ndarray) -> None:
    """Gives a prepared set the item vectors [num_items + 1, dim]; items without an event are cold."""
    path = folder / ITEM_VECTORS_FILE
    manifest = load_manifest(folder)
    path.unlink(missing_ok=True)  # an export may hold the same file
    np.save(path, vectors.astype(np.float32))
    num_cold = int((pq.read_table(folder / ITEMS_FILE)["count"].to_numpy() == 0).sum())
    facts = VectorFacts(
        dim=vectors.shape[1],
        num_items=int(vectors.any(axis=1).sum()),
        num_cold_items=num_cold,
        num_bytes=path.stat().st_size,
        sha256=file_digest(path),
    )
    changed = {
        "item_vectors": facts,
        "num_train_items": manifest.num_items - num_cold,
        "content_hash": content_hash(folder, manifest.files, manifest.split, facts),
    }
    save_manifest(folder, manifest.model_copy(update=changed))
    load_manifest(folder)


WITH_VECTORS = ("data.item_vectors.path=unused", "inputs.item_vectors.id_dropout=0.3")
"""For `make_config`: a model that reads the vectors of the set."""


def make_config(prepared: Path, *overrides: str) -> ExperimentConfig:
    """A small SASRec config over a prepared folder, with `section.field=value` overrides."""
    values = {
        "name": "unit",
        "runs_dir": str(prepared.parent / "runs"),
        "data": {"source": {"name": "synthetic"}, "prepared": str(prepared)},
        "sequence": {"max_length": 8},
        "model": {"name": "sasrec", "dim": 8, "num_layers": 1, "num_heads": 1, "dropout": 0.0},
        "loss": {"name": "full-softmax"},
        "train": {"max_steps": 10},
        "evaluation": {"ks": [1, 5, 10], "metric": "ndcg@10"},
    }
    return config_from_dict(apply_overrides(values, list(overrides)))
