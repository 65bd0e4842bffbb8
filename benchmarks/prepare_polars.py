"""Polars' side of prepare.py, run by the Python of its own environment: prepare_polars.py LOG OUT THREADS.

Prints one line of JSON: how many events there were, and the version.
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Reads the log, numbers the items, sorts and groups by user, and writes sequences and items."""
    log, out, threads = sys.argv[1:]
    os.environ["POLARS_MAX_THREADS"] = threads
    import polars as pl

    Path(out).mkdir()
    known = pl.all_horizontal(pl.col("user", "item", "time").is_not_null())
    rows = pl.scan_parquet(f"{log}/*.parquet").filter(known & (pl.col("value") >= 0))
    events = rows.select("user", "item", "time", "action").collect()
    falling = {"descending": [True, False]}
    items = events.group_by("item").len().sort(["len", "item"], **falling).with_row_index("index", offset=1)
    actions = events.group_by("action").len().sort(["len", "action"], **falling).with_row_index("code", offset=1)
    sequences = (
        events.lazy()
        .join(items.lazy().select("item", pl.col("index").cast(pl.Int32)), on="item", maintain_order="left")
        .join(actions.lazy().select("action", pl.col("code").cast(pl.UInt8)), on="action", maintain_order="left")
        .sort(["user", "time"], maintain_order=True)
        .group_by("user", maintain_order=True)
        .agg(length=pl.len(), items=pl.col("index"), times=pl.col("time"), actions=pl.col("code"))
        .collect()
    )
    sequences.write_parquet(f"{out}/sequences.parquet", compression="zstd")
    items.write_parquet(f"{out}/items.parquet")
    print(json.dumps({"events": len(events), "version": pl.__version__}))


if __name__ == "__main__":
    main()
