"""Downloads from a local server: whole and right, or not there and a sentence that says why."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genrec.data.download import download
from genrec.errors import ConfigError, DataError

BODY = bytes(range(256)) * 9_000
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """Serves BODY whole, cut off, or not at all, by path; remembers what it was asked for."""

    asked: list[str]
    release: threading.Event

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/missing.zip":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.path == "/silent.zip":
            self.release.wait(60)
            return
        self.wfile.write(BODY[: len(BODY) // 3] if self.path == "/truncated.zip" else BODY)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Handler, "asked", [], raising=False)
    monkeypatch.setattr(Handler, "release", threading.Event(), raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        Handler.release.set()
        http.shutdown()
        thread.join(10)


@pytest.mark.parametrize("checksum", [MD5, SHA256])
def test_downloads_once(server: str, tmp_path: Path, checksum: str) -> None:
    target, fractions = tmp_path / "deep/folder/set.zip", list[float]()
    for _ in range(2):
        assert download(f"{server}/set.zip", target, checksum, progress=fractions.append) == target
    assert target.read_bytes() == BODY
    assert Handler.asked == ["/set.zip"]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(fractions) > 1


def test_a_damaged_file_is_downloaded_again(server: str, tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(BODY[:100])
    assert download(f"{server}/set.zip", tmp_path / "set.zip", MD5).read_bytes() == BODY


@pytest.mark.parametrize(
    ("path", "checksum", "words"),
    [
        ("/set.zip", "md5:" + "0" * 32, f"checksum {MD5}, expected md5:{'0' * 32}; it was deleted"),
        ("/truncated.zip", MD5, f"broke off after {len(BODY) // 3} of {len(BODY)} bytes"),
        ("/missing.zip", MD5, "answered 404 Not Found; download it by hand and set data.source.path"),
    ],
)
def test_nothing_is_left_of_a_failure(server: str, tmp_path: Path, path: str, checksum: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        download(server + path, tmp_path / "set.zip", checksum)
    assert f"{server}{path}" in str(caught.value) and words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_is_left(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="broke off"):
        download(f"{server}/silent.zip", tmp_path / "set.zip", MD5, timeout_s=0.2)
    assert list(tmp_path.iterdir()) == []


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with pytest.raises(DataError, match="cannot be reached"):
            download(f"http://127.0.0.1:{unused.getsockname()[1]}/set.zip", tmp_path / "set.zip", MD5)


def test_a_folder_that_cannot_be_written(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"set data.source.download_dir to another folder"):
        download(f"{server}/set.zip", tmp_path / "file/set.zip", MD5)


@pytest.mark.parametrize("checksum", ["0" * 32, "md5:123", "sha1:" + "0" * 40, "md5:" + "g" * 32, "sha256:" + "0" * 32])
def test_unusable_checksum(tmp_path: Path, checksum: str) -> None:
    with pytest.raises(ConfigError, match=r"data.source.checksum must be md5: and 32, or sha256: and 64"):
        download("http://127.0.0.1:1/set.zip", tmp_path / "set.zip", checksum)


def test_unusable_url(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.source.url must start with http"):
        download("file:///etc/hostname", tmp_path / "set.zip", MD5)
