"""A local HTTP server with the routes of a Ray dashboard that genrec asks: answers are settable, requests are kept."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeDashboard:
    """A cluster of `machines`, each (cpus, gpus, labels); `packages` and `jobs` are what was sent, `tokens`
    the Authorization headers that came; `sends_to` is where callers are redirected.
    """

    def __init__(self) -> None:
        self.ray_version = "2.60.0"
        self.python_version = "3.11.7"
        self.machines: list[tuple[float, float, dict[str, str]]] = [(4.0, 0.0, {})]
        self.node_types = ["node_" + "0a" * 28]
        self.token: str | None = None
        self.packages: dict[str, bytes] = {}
        self.jobs: list[dict[str, Any]] = []
        self.address = ""
        self.sends_to: str | None = None
        self.tokens: list[str] = []

    def answer(self, path: str) -> dict[str, Any] | list[Any] | None:
        """The JSON at a path; None is 404."""
        if path == "/api/version":
            return {"version": "4", "ray_version": self.ray_version, "ray_commit": "x", "session_name": "s"}
        if path == "/api/v0/cluster_metadata":
            return _wrapped({"rayVersion": self.ray_version, "pythonVersion": self.python_version})
        if path.startswith("/api/v0/nodes"):
            nodes = [
                {"state": "ALIVE", "resources_total": {"CPU": cpus} | ({"GPU": gpus} if gpus else {}), "labels": labels}
                for cpus, gpus, labels in self.machines
            ]
            dead = {"state": "DEAD", "resources_total": {"CPU": 64.0}, "labels": {}}
            return _wrapped({"result": {"result": [*nodes, dead]}})
        if path == "/api/cluster_status":
            types = {str(number): name for number, name in enumerate(self.node_types)}
            return _wrapped({"clusterStatus": {"autoscalerReport": {"nodeTypeMapping": types}}})
        if path.startswith("/api/packages/"):
            return {} if path in self.packages else None
        return None


def _wrapped(data: dict[str, Any]) -> dict[str, Any]:
    return {"result": True, "msg": "", "data": data}


@contextmanager
def running(dashboard: FakeDashboard) -> Iterator[FakeDashboard]:
    """Serves the dashboard on a free port of this machine while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(dashboard.answer(self.path))

        def do_PUT(self) -> None:
            dashboard.packages[self.path] = self._body()
            self._send({})

        def do_POST(self) -> None:
            dashboard.jobs.append(json.loads(self._body()))
            name = dashboard.jobs[-1]["submission_id"]
            self._send({"job_id": name, "submission_id": name})

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"]))

        def _send(self, answer: dict[str, Any] | list[Any] | None) -> None:
            given = self.headers.get("Authorization")
            dashboard.tokens += [given] if given else []
            if dashboard.sends_to:
                self.send_response(302)
                self.send_header("Location", dashboard.sends_to + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            code = 404 if answer is None else 200
            if dashboard.token is not None and given != f"Bearer {dashboard.token}":
                code, answer = (401 if given is None else 403), {}
            text = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    dashboard.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield dashboard
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
