"""Malformed logs, drawn by a seed: text and Parquet files that are damaged or hold rows that cannot be events.

Every case says how many rows its file holds and how many of them are events, where that can be known.
"""

import codecs
import gzip
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FAR_TIMES = ("99999999999999999", "1e30", "-1e18", "12345-01-01", "10000-01-01", "253402300800", "-99999999999999")


@dataclass(frozen=True, slots=True)
class Case:
    """One file. `num_rows` and `num_events` are None where the damage decides; `refused`: it cannot be read at all."""

    name: str
    data: bytes
    num_rows: int | None = None
    num_events: int | None = None
    refused: bool = False


def good_lines(rng: random.Random) -> list[str]:
    """Lines `user,item,time,note` without a header."""
    note = rng.choice(["", "Ünïcödé 音楽 🎵", "a,b".replace(",", " ")])
    return [
        f"u{rng.randrange(9)},i{rng.randrange(30)},{rng.randrange(10**9)},{note}" for _ in range(rng.randrange(5, 60))
    ]


def text(lines: list[str], ending: str = "\n") -> bytes:
    """A CSV file of these lines."""
    return ending.join(["user,item,time,note", *lines, ""]).encode()


def insert(rng: random.Random, lines: list[str], bad: list[str]) -> list[str]:
    """The lines with the bad ones at random places."""
    mixed = list(lines)
    for line in bad:
        mixed.insert(rng.randrange(len(mixed) + 1), line)
    return mixed


def some(rng: random.Random, *choices: str) -> list[str]:
    """One to four of the choices, which may repeat."""
    return rng.choices(choices, k=rng.randrange(1, 5))


def bad_rows(*choices: str) -> Callable[[random.Random], Case]:
    """Rows that cannot be events among good ones."""

    def draw(rng: random.Random) -> Case:
        lines, bad = good_lines(rng), some(rng, *choices)
        return Case("log.csv", text(insert(rng, lines, bad)), len(lines) + len(bad), len(lines))

    return draw


def odd_rows(*choices: str) -> Callable[[random.Random], Case]:
    """Rows that look odd and are events all the same."""

    def draw(rng: random.Random) -> Case:
        lines = insert(rng, good_lines(rng), some(rng, *choices))
        return Case("log.csv", text(lines), len(lines), len(lines))

    return draw


def endings(rng: random.Random) -> Case:
    """Byte-order mark, line ends of other systems, empty lines, and no end of the last line."""
    lines = good_lines(rng)
    spread = insert(rng, lines, [""] * rng.randrange(3))
    data = text(spread, rng.choice(["\n", "\r\n", "\r"])).rstrip() if rng.random() < 0.5 else text(spread, "\r\n")
    return Case("log.csv", rng.choice([b"", codecs.BOM_UTF8]) + data, len(lines), len(lines))


def other_encoding(rng: random.Random) -> Case:
    """Some lines in Latin-1, in a column that counts or in one that does not."""
    lines = good_lines(rng)
    bad = [line.encode("latin-1") for line in some(rng, "José,i1,5,", "u1,Beyoncé,6,", "u1,i1,7é,", "Zoë,i1")]
    harmless = [line.encode("latin-1") for line in some(rng, "u1,i1,5,café", "u2,i1,5,naïve")]
    mixed = [line.encode() for line in lines]
    for line in [*bad, *harmless]:
        mixed.insert(rng.randrange(len(mixed) + 1), line)
    num_events = len(lines) + len(harmless)
    return Case("log.csv", b"\n".join([b"user,item,time,note", *mixed]), num_events + len(bad), num_events)


def quotes(rng: random.Random) -> Case:
    """A quote that swallows a line break, or everything to the end of the file: every line is still accounted for."""
    before, after = good_lines(rng), good_lines(rng)
    if rng.random() < 0.5:
        lines = [*before, 'u1,"i1,5,', 'u2,i2",6,', *after]
        return Case("log.csv", text(lines), len(lines), len(before) + len(after))
    lines = [*before, 'u1,"i1,5,', *after]
    return Case("log.csv", text(lines).rstrip(b"\n"), len(lines), len(before))


def truncated_text(rng: random.Random) -> Case:
    """A CSV file that ends somewhere: the last line may be half a line."""
    data = text(good_lines(rng))
    data = data[: rng.randrange(len(b"user,item,time,note\n"), len(data))]
    return Case("log.csv", data, len(data.split(b"\n")) - 1 - data.endswith(b"\n"))


def header(rng: random.Random) -> Case:
    """A header that is missing, renamed, doubled, cut, of another delimiter, or of another encoding."""
    lines = good_lines(rng)
    wrong = ["", "u1,i1,5,", "user,item,when,note", "User,Item,Time,Note", "user,item,time,user", "user;item;time;note"]
    data = "\n".join([rng.choice([*wrong[1:], '"user,item,time,note', "\x00\x01"]), *lines])
    encoding = rng.choice(["utf-8", "utf-16", "utf-16-be"])
    return Case("log.csv", data.encode(encoding), refused=True)


def nothing(rng: random.Random) -> Case:
    """No rows: an empty file, or a header alone."""
    data = rng.choice([b"", b"user,item,time", b"user,item,time\n", codecs.BOM_UTF8 + b"user,item,time\r\n\r\n"])
    if rng.random() < 0.3:
        return Case("log.csv.gz", gzip.compress(data), 0, 0)
    return Case("log.csv", data, 0, 0)


def noise(rng: random.Random) -> Case:
    """Bytes that are no log at all."""
    return Case(
        rng.choice(["log.csv", "log.csv.gz", "log.parquet"]), rng.randbytes(rng.randrange(1, 3_000)), refused=True
    )


def damaged_gzip(rng: random.Random) -> Case:
    """A gzip file that is cut, or has another byte somewhere."""
    data = bytearray(gzip.compress(text(good_lines(rng) * 20)))
    if rng.random() < 0.5:
        return Case("log.csv.gz", bytes(data[: rng.randrange(1, len(data))]), refused=True)
    data[rng.randrange(20, len(data) - 8)] ^= 1 << rng.randrange(8)
    return Case("log.csv.gz", bytes(data), refused=True)


def parquet(table: pa.Table, **options: Any) -> bytes:
    """The table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return bytes(sink.getvalue())


def good_table(rng: random.Random, num_rows: int) -> pa.Table:
    """Rows of user, item, time."""
    ids = [rng.randrange(10**6) for _ in range(num_rows)]
    return pa.table({"user": ids, "item": [f"i{n % 7}" for n in ids], "time": [n * 900 for n in ids]})


def damaged_parquet(rng: random.Random) -> Case:
    """A Parquet file that is cut, has another magic number, or some other bytes in its middle."""
    data = bytearray(parquet(good_table(rng, 300), row_group_size=100))
    kind = rng.randrange(4)
    if kind == 0:
        return Case("log.parquet", bytes(data[: rng.randrange(len(data))]), refused=True)
    if kind == 1:
        data[-4:] = rng.choice([b"PARE", b"ORC1", b"\0\0\0\0"])
        return Case("log.parquet", bytes(data), refused=True)
    if kind == 2:
        data[-8:-4] = struct.pack("<I", rng.choice([0, 7, 2**31, 2**32 - 1]))
        return Case("log.parquet", bytes(data), refused=True)
    for _ in range(rng.randrange(1, 9)):
        data[rng.randrange(4, len(data) - 8)] ^= 1 << rng.randrange(8)
    return Case("log.parquet", bytes(data))


ODD_COLUMNS: tuple[tuple[str, pa.Array, int | None], ...] = (
    # role, three values, and how many of them make an event; None when the column cannot be used
    ("user", pa.array([True, False, None]), None),
    ("user", pa.array([b"a", b"\xff", None], pa.binary()), None),
    ("user", pa.array([Decimal("1.5"), Decimal("2"), None]), None),
    ("user", pa.array([[1], [2], None]), None),
    ("user", pa.array([{"id": 1}, {"id": 2}, None]), None),
    ("user", pa.array([1.5, 2.0, None]), None),
    ("user", pa.array([float("inf"), 2.0, None]), None),
    ("user", pa.array([1e300, 2.0, None]), None),
    ("user", pa.array([2**64 - 1, 2, None], pa.uint64()), None),
    ("user", pa.array([date(2020, 1, 1), None, None]), None),
    ("user", pa.array([float("nan"), 2.0, None]), 1),
    ("user", pa.array([-(2**63), 2**63 - 1, None]), 2),
    ("user", pa.array([1, 2, None], pa.int8()), 2),
    ("user", pa.array(["", "a\x00b", "x" * 100_000]), 2),
    ("user", pa.array(["a", None, "b"]).dictionary_encode(), 2),
    ("item", pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int8()), pa.array(["a", ""])), 1),
    ("item", pa.array(["a", "b", None], pa.large_string()), 2),
    ("item", pa.array([None, None, None], pa.string()), 0),
    ("item", pa.array([b"a", b"\xff\xfe", b"\xc3"], pa.binary()).view(pa.string()), 1),
    ("item", pa.array([timedelta(1), None, None]), None),
    ("time", pa.array([True, False, None]), None),
    ("time", pa.array([timedelta(1), None, None]), None),
    ("time", pa.array([[1], [2], None]), None),
    ("time", pa.array([Decimal("1.5"), Decimal("2"), None]), None),
    ("time", pa.array([b"1", b"2", None], pa.binary()), None),
    ("time", pa.array([float("nan"), float("inf"), -float("inf")]), 0),
    ("time", pa.array([1e300, -1e300, 1.5]), 1),
    ("time", pa.array([2**64 - 1, 5, None], pa.uint64()), 1),
    ("time", pa.array([-(2**63), 2**63 - 1, -5]), 1),
    ("time", pa.array([2**62, -(2**62), 0], pa.timestamp("ms")), 1),
    ("time", pa.array([2**62, 5, None], pa.timestamp("ns")), 2),
    ("time", pa.array([date(1, 1, 1), date(9999, 12, 31), None]), 2),
    ("time", pa.array(["0000-01-01", "2020-02-30", "2020-02-29T25:00"]), 0),
    ("time", pa.array(["1", "+2", "\u0663"]), 2),
    ("time", pa.array(["a" * 100_000, "", "2020-01-01T00:00:00.123456789123Z"]), 1),
    ("value", pa.array([[1], [2], None]), None),
    ("value", pa.array([-1.0, float("nan"), float("inf")]), 2),
    ("value", pa.array(["inf", "1e400", "0x10"]), 1),
    ("value", pa.array([b"\xff", b"1", None], pa.binary()).view(pa.string()), 2),
    ("value", pa.array([Decimal("1.5"), Decimal("-2"), None]), 2),
    ("action", pa.array([[1], [2], None]), None),
    ("action", pa.array([{"a": 1}, None, None]), None),
    ("action", pa.array([b"play", b"\xff", None], pa.binary()).view(pa.string()), 2),
    ("action", pa.array([1, 2, None]), 3),
    ("action", pa.array([True, None, False]), 3),
)


def odd_column(index: int) -> Case:
    """Three rows of which one column has an unusual type or content."""
    role, values, num_events = ODD_COLUMNS[index]
    rows = {
        "user": [1, 2, 3],
        "item": ["a", "b", "c"],
        "time": [1, 2, 3],
        "value": [1.0, 2.0, 3.0],
        "action": ["x"] * 3,
    }
    data = parquet(pa.table({**rows, role: values}))
    return Case("log.parquet", data, None if num_events is None else 3, num_events, refused=num_events is None)


def parquet_header(rng: random.Random) -> Case:
    """A Parquet file that lacks a column, or has one twice, or of another name."""
    table = good_table(rng, 5)
    role = rng.choice(table.column_names)
    other = [
        table.drop_columns([role]),
        table.rename_columns([name.upper() if name == role else name for name in table.column_names]),
        table.append_column(role, table[role]),
        pa.table({}),
    ]
    return Case("log.parquet", parquet(rng.choice(other)), refused=True)


KINDS: dict[str, Callable[[random.Random], Case]] = {
    "nulls": bad_rows(",i1,5,", "u1,,5,", "u1,i1,,", ",,,", "NaN,i1,5,", "u1,null,5,", "u1,i1,\\N,"),
    "times": bad_rows(*(f"u1,i1,{moment}," for moment in FAR_TIMES), "u1,i1,noon,", "u1,i1,0000-01-01,", "u1,i1,--5,"),
    "fields": bad_rows("u1,i1", "u1,i1,5,,", "u1", "u1,i1,5,a,b,c", ",,", "x" * 500),
    "repeated header": bad_rows("user,item,time,note"),
    "odd ids": odd_rows(
        f"{10**40},i1,5,", f"u1,{'x' * 50_000},5,", "u\x00v,i\x00,5,", "\u202eu,🎵,5,", "'; DROP--,<b>,5,"
    ),
    "odd times": odd_rows("u1,i1,-5,", "u1,i1, 7 ,", "u1,i1,1969-12-31,", "u1,i1,1e3,", "u1,i1,-62135596800,"),
    "duplicates": odd_rows("u1,i1,5,", "u1,i1,5,", "u1,i1,5,"),
    "endings": endings,
    "other encoding": other_encoding,
    "quotes": quotes,
    "truncated text": truncated_text,
    "header": header,
    "nothing": nothing,
    "noise": noise,
    "damaged gzip": damaged_gzip,
    "damaged parquet": damaged_parquet,
    "parquet header": parquet_header,
}


def write(case: Case, folder: Path) -> Path:
    """The case's file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / case.name
    path.write_bytes(case.data)
    return path


def long_history(num_events: int) -> bytes:
    """A Parquet file of one user with very many events, all in the same few seconds."""
    times = np.arange(num_events) % 5
    return parquet(
        pa.table({"user": np.zeros(num_events, np.int64), "item": np.arange(num_events) % 11, "time": times})
    )
