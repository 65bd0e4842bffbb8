"""A local S3 for tests: moto's server in a process of its own, behind a proxy that fails and waits as a test tells it.

The proxy answers a seeded share of the requests with 503, as S3 does when it is asked too often, or answers them late,
or cuts the connection. It counts what it did, so that a test can say that something failed at all.
"""

import http.client
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket

BUCKET = "bucket"
SECRET = "nobody-may-ever-read-this-9f3c1d"  # a word to look for wherever something is kept
SLOW_DOWN = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code>"
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_KEPT_OUT = {"connection", "transfer-encoding", "content-length", "server", "date"}


@dataclass
class Faults:
    """What the proxy does wrong: shares of the requests, drawn from `seed`."""

    fails: float = 0.0
    cuts: float = 0.0
    waits: float = 0.0
    wait_s: float = 0.5
    seed: int = 0
    num_requests: int = 0
    num_failed: int = 0
    num_cut: int = 0
    num_waited: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def next(self) -> str:
        """What happens to the next request: `fail`, `cut`, `wait` or nothing."""
        with self._lock:
            self.num_requests += 1
            draw = self._random.random()
            if draw < self.fails:
                self.num_failed += 1
                return "fail"
            if draw < self.fails + self.cuts:
                self.num_cut += 1
                return "cut"
            if draw < self.fails + self.cuts + self.waits:
                self.num_waited += 1
                return "wait"
            return ""


@dataclass
class S3Server:
    """Where it is, and what it does wrong from now on."""

    endpoint: str
    faults: Faults

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a process finds it, and the credentials that must not be written down anywhere."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "AKIA-for-tests",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A running server with an empty bucket."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    server = S3Server("", Faults())
    proxy = _Proxy(("127.0.0.1", 0), _handler(port, server))
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    try:
        _make_bucket(process, port)
        server.endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"
        thread.start()
        yield server
    finally:
        proxy.shutdown() if thread.is_alive() else None
        proxy.server_close()
        process.kill()
        process.wait(30)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A command that is killed drops its connections; that is no news."""


def _make_bucket(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "moto's server ended; `pip install -c constraints.txt -e .[dev]` installs it"
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(
                "PUT", f"/{BUCKET}", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=a/b/us-east-1/s3"}
            )
            assert connection.getresponse().status == 200
            return
        except ConnectionError:
            assert time.monotonic() < deadline, "moto's server does not answer"
            time.sleep(0.05)


def _handler(port: int, server: S3Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self._body()
            verdict = server.faults.next()
            if verdict == "cut":
                self.close_connection = True
                self.connection.close()
                return
            if verdict == "fail":
                self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
                return
            if verdict == "wait":
                time.sleep(server.faults.wait_s)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _KEPT_OUT}
            if self.command == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length") or "0"
            connection.close()
            self._answer(answer.status, kept, content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def _body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            return None

    return Handler
