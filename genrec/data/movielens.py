"""MovieLens in the formats that GroupLens releases: where its files are, and what is in them.

Harper and Konstan, "The MovieLens Datasets: History and Context", 2015. Ratings become events (`value` is the rating);
the order of the file decides between ratings of the same second.
"""

import csv
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from genrec.config import MovieLensSource
from genrec.data.download import download, file_checksum
from genrec.data.log_files import LogFile, expand_path, unreadable
from genrec.data.log_parts import LogPart
from genrec.errors import DataError

_URL = "https://files.grouplens.org/datasets/movielens/{name}.zip"


class _Unquoted(csv.excel):
    """Quotation marks mean nothing."""

    quoting = csv.QUOTE_NONE


@dataclass(frozen=True, slots=True)
class _Release:
    """File names and formats of one release; `md5` is what GroupLens publishes for its zip file."""

    md5: str
    num_ratings: int
    ratings: str
    delimiter: str
    names: tuple[str, ...]
    titles: str
    titles_delimiter: str
    titles_encoding: str
    skip_lines: int = 0


# "::" is read as ":" with an empty field between two values: CSV readers take one character.
_RELEASES = {
    "ml-100k": _Release(
        md5="0e33842e24a9c977be4e0107933c0723",
        num_ratings=100_000,
        ratings="u.data",
        delimiter="\t",
        names=("user", "item", "value", "time"),
        titles="u.item",
        titles_delimiter="|",
        titles_encoding="latin-1",
    ),
    "ml-1m": _Release(
        md5="c4d9eecfca2ab87c1945afe126590906",
        num_ratings=1_000_209,
        ratings="ratings.dat",
        delimiter=":",
        names=("user", "gap1", "item", "gap2", "value", "gap3", "time"),
        titles="movies.dat",
        titles_delimiter="::",
        titles_encoding="latin-1",
    ),
    "ml-20m": _Release(
        md5="cd245b17a1ae2cc31bb14903e1204af3",
        num_ratings=20_000_263,
        ratings="ratings.csv",
        delimiter=",",
        names=("user", "item", "value", "time"),
        titles="movies.csv",
        titles_delimiter=",",
        titles_encoding="utf-8",
        skip_lines=1,
    ),
}


def open_release(source: MovieLensSource, progress: Callable[[float], None] | None = None) -> tuple[LogPart, pa.Table]:
    """The ratings as a part of a log, and the titles (item, title) of the movies; downloads them when no path is given.

    Raises DataError when the folder or zip file does not hold the release.
    """
    release = _RELEASES[source.name]
    place = _locate(source, release, progress)
    if place.is_dir():
        folder = next((f for f in (place, place / source.name) if (f / release.ratings).is_file()), None)
        if folder is None:
            raise _not_a_release(place, source.name, release, sorted(p.name for p in place.iterdir()))
        ratings = folder / release.ratings
        file, member = LogFile(str(ratings), ratings.stat().st_size), None
        titles_file = folder / release.titles
        titles = titles_file.read_bytes() if titles_file.is_file() else b""
    else:
        file, member, titles = _look_into_zip(place, source.name, release)
    part = LogPart(
        file,
        "delimited",
        {"user": "user", "item": "item", "time": "time", "value": "value"},
        num_rows=release.num_ratings,
        delimiter=release.delimiter,
        quoted=False,
        names=release.names,
        skip_lines=release.skip_lines,
        member=member,
    )
    return part, _parse_titles(titles.decode(release.titles_encoding), release.titles_delimiter)


def _locate(source: MovieLensSource, release: _Release, progress: Callable[[float], None] | None) -> Path:
    if source.path is None:
        url = source.url or _URL.format(name=source.name)
        target = Path(expand_path(source.download_dir)) / f"{source.name}.zip"
        return download(url, target, source.checksum or f"md5:{release.md5}", progress=progress)
    place = Path(expand_path(source.path))
    if not place.exists():
        raise DataError(f"{place} does not exist; correct data.source.path, or leave it out to download {source.name}.")
    if source.checksum is not None and place.is_file() and file_checksum(place, source.checksum) != source.checksum:
        found = file_checksum(place, source.checksum)
        raise DataError(f"{place} has checksum {found}, expected {source.checksum}; copy or download it again.")
    return place


def _look_into_zip(place: Path, name: str, release: _Release) -> tuple[LogFile, str, bytes]:
    try:
        with zipfile.ZipFile(place) as archive:
            present = archive.namelist()
            member = next((m for m in (f"{name}/{release.ratings}", release.ratings) if m in present), None)
            if member is None:
                raise _not_a_release(place, name, release, present)
            titles_member = member.removesuffix(release.ratings) + release.titles
            titles = archive.read(titles_member) if titles_member in present else b""
    except (zipfile.BadZipFile, OSError) as error:
        raise unreadable(str(place), error) from error
    return LogFile(str(place), place.stat().st_size), member, titles


def _not_a_release(place: Path, name: str, release: _Release, present: list[str]) -> DataError:
    holds = ", ".join(present[:5]) or "nothing"
    return DataError(
        f"{place} is not {name}: it has no {release.ratings} (it holds {holds}); point data.source.path at "
        "the zip file or the folder that GroupLens releases."
    )


def _parse_titles(text: str, delimiter: str) -> pa.Table:
    if len(delimiter) == 1:
        dialect = csv.excel if delimiter == "," else _Unquoted
        rows = list(csv.reader(io.StringIO(text), dialect, delimiter=delimiter))
    else:
        rows = [line.split(delimiter) for line in text.splitlines()]
    pairs = [(row[0], row[1]) for row in rows if len(row) > 1 and row[0] != "movieId"]
    return pa.table(
        {
            "item": pa.array([item for item, _ in pairs], pa.string()),
            "title": pa.array([t for _, t in pairs], pa.string()),
        }
    )
