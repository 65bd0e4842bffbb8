"""The text of every item: columns of a file, joined by item id, or the titles of the prepared set."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from genrec.data.log_files import LogFile, find_files, unreadable
from genrec.errors import ConfigError, DataError
from genrec.semantic.vocabulary import item_ids, read_items


def item_texts(prepared: Path, path: str | None, item: str, columns: Sequence[str]) -> pa.Array:
    """The text of each item of a prepared set, in index order, [num_items]; empty where there is none.

    Raises DataError when the file cannot be read, has an item twice, or knows none of the items.
    """
    ids = item_ids(prepared)
    if path is None:
        if tuple(columns) != ("title",):
            raise ConfigError(
                f"semantic_ids.vectors.columns is {list(columns)} and the prepared set has titles only; name a file in "
                "semantic_ids.vectors.path."
            )
        titles = read_items(prepared, ("title",))["title"].combine_chunks().fill_null("")
        if not pc.any(pc.not_equal(titles, "")).as_py():
            raise DataError(
                f"The items of {prepared} have no titles; name a file with their texts in semantic_ids.vectors.path."
            )
        return titles.cast(pa.large_string())
    (file,) = find_files(path, ())[:1]
    keys, texts = _read(file, item, columns)
    _refuse_twice(file, keys)
    rows = pc.index_in(ids, value_set=keys)
    if rows.null_count == len(ids):
        raise DataError(
            f"{file.path} has {len(keys):,} items and none of them is in {prepared} (ids there are like "
            f"{ids[0].as_py()!r}, here like {keys[0].as_py() if len(keys) else None!r}); set semantic_ids.vectors.item "
            "to their column."
        )
    return texts.take(rows).fill_null("")


def _read(file: LogFile, item: str, columns: Sequence[str]) -> tuple[pa.Array, pa.Array]:
    name = file.path.removesuffix(".gz")
    if name.endswith(".json"):
        return _read_json(file)
    try:
        if name.endswith(".parquet"):
            with file.open() as stream:
                table = pq.read_table(stream)
        else:
            parsing = pa_csv.ParseOptions(
                delimiter="\t" if name.endswith((".tsv", ".tab")) else ",", newlines_in_values=True
            )
            with file.open_text() as stream:
                # Ids stay texts: "007" is not 7.
                names = pa_csv.open_csv(file.open_text(), parse_options=parsing).schema.names
                converting = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
                table = pa_csv.read_csv(stream, parse_options=parsing, convert_options=converting)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file.path, error) from error
    for wanted in (item, *columns):
        if table.column_names.count(wanted) != 1:
            raise DataError(
                f"{file.path} must have one column {wanted!r} (it has {', '.join(table.column_names)}); set "
                "semantic_ids.vectors.item and semantic_ids.vectors.columns to the right ones."
            )
    parts = [_text(table[column]) for column in columns]
    texts = pc.utf8_trim_whitespace(pc.binary_join_element_wise(*parts, pa.scalar(" ", pa.large_string())))
    return _text(table[item]), texts


def _text(column: pa.ChunkedArray) -> pa.Array:
    return column.cast(pa.string()).cast(pa.large_string()).combine_chunks().fill_null("")


def _read_json(file: LogFile) -> tuple[pa.Array, pa.Array]:
    values = read_json_object(file)
    texts = [" ".join(map(str, text)) if isinstance(text, list) else str(text) for text in values.values()]
    return pa.array(list(values), pa.large_string()), pa.array(texts, pa.large_string())


def read_json_object(file: LogFile) -> dict[str, object]:
    """The object of a JSON file; raises DataError when it is none."""
    try:
        with file.open_text() as stream:
            values = json.loads(stream.read())
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(file.path, error) from error
    if not isinstance(values, dict):
        raise DataError(f"{file.path} must hold one JSON object, id: value; it holds a {type(values).__name__}.")
    return values


def _refuse_twice(file: LogFile, keys: pa.Array) -> None:
    counted = pc.value_counts(keys)
    twice = counted.filter(pc.greater(counted.field("counts"), 1))
    if len(twice):
        raise DataError(
            f"{file.path} has {twice[0]['counts'].as_py()} rows for item {twice[0]['values'].as_py()!r}; keep one row "
            "for each item."
        )
