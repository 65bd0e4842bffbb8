"""What a prepared set says, whatever the numbers and files it says it with: for sets that must be equal in content."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from genrec.data.manifest import content_hash, load_manifest
from genrec.data.schema import ITEMS_FILE, REJECTED_DIR, SEQUENCES_DIR, USERS_FILE, sequences_schema
from genrec.data.sequence_files import read_row_group, superseded_path

Content = dict[str, Any]


def read_content(folder: Path) -> Content:
    """Sequences by user, items, counts, bad rows, after checking that the parts of the set agree with each other."""
    manifest = load_manifest(folder)
    items = pq.read_table(folder / ITEMS_FILE).to_pylist()
    users = pq.read_table(folder / USERS_FILE).to_pylist()
    assert [row["index"] for row in items] == list(range(1, manifest.num_items + 1))
    assert [row["index"] for row in users] == list(range(manifest.num_users))
    names = (None, *manifest.actions)
    columns = sequences_schema(values=manifest.has_values).names
    sequences: dict[Any, list[tuple[Any, ...]]] = {}
    for file in manifest.files:
        for group, described in enumerate(file.row_groups):
            rows = read_row_group(folder, file.path, group, columns).to_pylist()
            assert (described.rows, described.events) == (len(rows), sum(row["length"] for row in rows))
            for row in rows:
                user = users[row["user"]]["user"]
                assert user not in sequences, f"{user} comes twice"
                assert row["length"] == len(row["items"]) == len(row["times"]) == len(row["actions"])
                values = [[None if v != v else v for v in row["values"]]] if manifest.has_values else []
                sequences[user] = [
                    (items[item - 1]["item"], time, names[action], *value)
                    for item, time, action, *value in zip(
                        row["items"], row["times"], row["actions"], *values, strict=True
                    )
                ]
    on_disk = {path.name for path in (folder / SEQUENCES_DIR).iterdir()}
    listed = {Path(file.path).name for file in manifest.files}
    lists = {superseded_path(folder, file.path).name for file in manifest.files if file.num_superseded}
    assert on_disk == listed | lists
    assert len(sequences) == manifest.num_users
    assert manifest.content_hash == content_hash(folder, manifest.files, manifest.split, manifest.item_vectors)
    assert manifest.num_rows == manifest.num_events + sum(manifest.rejected.values()) + sum(manifest.filtered.values())
    rejected = pq.read_table(folder / REJECTED_DIR).to_pylist() if (folder / REJECTED_DIR).exists() else []
    assert Counter(row["reason"] for row in rejected) == manifest.rejected
    counts = manifest.model_dump(
        include={"num_users", "num_items", "num_events", "num_train_events", "has_times", "time_range"}
        | {"length_histogram", "num_rows", "rejected", "filtered", "source_files", "has_subseconds", "split"}
    )
    return counts | {
        "sequences": sequences,
        "items": sorted(tuple(list(row.values())[1:]) for row in items),
        "actions": sorted(manifest.actions),
        "rejected_rows": sorted(map(repr, rejected)),
        "rejected_files": {(bad.path, bad.reason) for bad in manifest.rejected_files},
    }
