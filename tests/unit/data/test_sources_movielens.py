"""MovieLens in its three release formats, from a folder, a zip file and a download. The rows are made up."""

import hashlib
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.parquet as pq
import pytest
from prepare_reference import read_prepared
from pydantic import TypeAdapter

from genrec.config import DataConfig, MovieLensSource
from genrec.data.log_parts import read_part
from genrec.data.prepare import prepare
from genrec.data.sources import open_log
from genrec.errors import DataError

RELEASES = {
    "ml-100k": {
        "u.data": "3\t8\t4\t30\n3\t5\t2\t10\n1\t8\t5\t20\n",
        "u.item": '5|GoldenEye "x" (1995)|01-Jan-1995||\n8|Été (1996)|||\n',
    },
    "ml-1m": {
        "ratings.dat": "3::8::4::30\n3::5::2::10\n1::8::5::20\n",
        "movies.dat": '5::GoldenEye "x" (1995)::Action|Thriller\n8::Été (1996)::Drama\n',
    },
    "ml-20m": {
        "ratings.csv": "userId,movieId,rating,timestamp\n3,8,4.0,30\n3,5,2.0,10\n1,8,5.0,20\n",
        "movies.csv": 'movieId,title,genres\n5,"GoldenEye ""x"" (1995)",Action\n8,Été (1996),Drama\n',
    },
}


def write_folder(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True)
    for file, text in RELEASES[name].items():
        (folder / file).write_bytes(text.encode("utf-8" if name == "ml-20m" else "latin-1"))
    return folder


def write_zip(path: Path, name: str, inner: str | None = None) -> Path:
    folder = write_folder(path.parent / "unpacked", name)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"{name if inner is None else inner}/{file.name}".lstrip("/"))
    return path


def rows_of(source: dict[str, Any], tmp_path: Path) -> list[tuple[str, str, str, float]]:
    log = open_log(TypeAdapter(MovieLensSource).validate_python(source), tmp_path / "work")
    assert log.item_info is not None
    assert log.item_info.to_pylist() == [
        {"item": "5", "title": 'GoldenEye "x" (1995)'},
        {"item": "8", "title": "Été (1996)"},
    ]
    assert log.columns == {"user", "item", "time", "value"} and log.text_ids
    blocks = [block for part in log.parts for block in read_part(part, lambda reason, rows: pytest.fail(reason))]
    return [(r["user"], r["item"], r["time"], float(r["value"])) for block in blocks for r in block.to_pylist()]


EXPECTED = [("3", "8", "30", 4.0), ("3", "5", "10", 2.0), ("1", "8", "20", 5.0)]


@pytest.mark.parametrize("name", RELEASES)
def test_folder_and_zip(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "above" / name, name)
    places = [folder, folder.parent]
    for inner in (None, ""):
        (tmp_path / f"zip{inner}").mkdir()
        places.append(write_zip(tmp_path / f"zip{inner}/set.zip", name, inner))
    for place in places:
        assert rows_of({"name": name, "path": str(place)}, tmp_path) == EXPECTED


def test_prepared_with_titles_and_a_smallest_rating(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "ml-1m.zip", "ml-1m")
    values = {"source": {"name": "ml-1m", "path": str(path)}, "prepared": str(tmp_path / "prepared"), "min_value": 4}
    manifest = prepare(DataConfig.model_validate(values))
    assert read_prepared(tmp_path / "prepared").sequences == {1: [(8, 20, None)], 3: [(8, 30, None)]}
    assert manifest.filtered == {"min_value": 1}
    assert pq.read_table(tmp_path / "prepared/items.parquet")["title"].to_pylist() == ["Été (1996)"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "www").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www"))) as http:
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join(10)


def test_download(tmp_path: Path, server: str) -> None:
    digest = hashlib.sha256(write_zip(tmp_path / "www/set.zip", "ml-100k").read_bytes()).hexdigest()
    downloads = str(tmp_path / "downloads")
    source = {"name": "ml-100k", "url": f"{server}/set.zip", "download_dir": downloads, "checksum": f"sha256:{digest}"}
    assert rows_of(source, tmp_path) == EXPECTED
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["ml-100k.zip"]
    # Without a checksum of its own it must be the published one.
    source = {"name": "ml-100k", "url": f"{server}/set.zip", "download_dir": downloads}
    with pytest.raises(DataError, match=r"expected md5:0e33842e24a9c977be4e0107933c0723; it was deleted"):
        open_log(TypeAdapter(MovieLensSource).validate_python(source), tmp_path / "work")


def refusal(tmp_path: Path, **values: str) -> str:
    with pytest.raises(DataError) as caught:
        open_log(TypeAdapter(MovieLensSource).validate_python(values), tmp_path / "work")
    return str(caught.value)


def test_wrong_places(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", "ml-20m")
    assert "is not ml-1m: it has no ratings.dat (it holds ml-20m/" in refusal(tmp_path, name="ml-1m", path=str(path))
    message = refusal(tmp_path, name="ml-100k", path=str(tmp_path / "unpacked"))
    assert "is not ml-100k: it has no u.data (it holds movies.csv, ratings.csv)" in message
    assert "does not exist; correct data.source.path" in refusal(tmp_path, name="ml-1m", path=str(tmp_path / "no.zip"))
    (tmp_path / "text.zip").write_text("no zip at all")
    message = refusal(tmp_path, name="ml-1m", path=str(tmp_path / "text.zip"))
    assert "text.zip cannot be read (File is not a zip file)" in message
    checksum = "md5:" + "0" * 32
    message = refusal(tmp_path, name="ml-20m", path=str(path), checksum=checksum)
    assert f"expected {checksum}; copy or download it again" in message


def test_damaged_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", "ml-1m")
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("ml-1m/ratings.dat").header_offset + 30 + len("ml-1m/ratings.dat")
    content = bytearray(path.read_bytes())
    content[start + 3 : start + 8] = bytes(5)
    path.write_bytes(content)
    values = {"source": {"name": "ml-1m", "path": str(path)}, "prepared": str(tmp_path / "prepared")}
    with pytest.raises(DataError, match=r"set.zip:ml-1m/ratings.dat cannot be read"):
        prepare(DataConfig.model_validate(values))
