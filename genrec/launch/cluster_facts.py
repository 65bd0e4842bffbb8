"""What a running cluster is, asked over its dashboard before anything is uploaded: versions, machines, autoscaler.

Plain HTTP without Ray, so a cluster that is not there costs a second and not an import. The token is found as Ray
finds it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token; unlike Ray's own client, it is also sent when
RAY_AUTH_MODE is not set, because `ray start` asks for it then as soon as there is one.
"""

import http.client
import importlib.metadata
import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from genrec.cluster.room import Machine, check_room
from genrec.config import ExperimentConfig
from genrec.doctor import SUPPORTED_PYTHONS
from genrec.errors import ConfigError, RunError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TIMEOUT_S = 15.0
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would take the token along, to whatever host an answer names."""

    def redirect_request(self, *arguments: Any) -> None:
        """Never: the answer becomes an HTTPError."""


_OPENER = urllib.request.build_opener(_NoRedirects)


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """Versions as `2.60.0` and `3.11.7`; `autoscales` is None where the cluster does not say."""

    ray_version: str
    python_version: str
    machines: tuple[Machine, ...]
    autoscales: bool | None


@dataclass(frozen=True, slots=True)
class Dashboard:
    """The address of a cluster's dashboard, without a slash at the end, and the headers of a request."""

    address: str
    headers: dict[str, str]

    def get(self, path: str) -> dict[str, Any]:
        """The JSON at `path`; raises RunError with one sentence when there is none to be had."""
        request = urllib.request.Request(self.address + path, headers=self.headers)
        try:
            with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise self._refused(error.code, error.headers.get("Location")) from error
        # Nobody there, a time-out, a name that does not resolve; something that speaks no HTTP; or no JSON.
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise RunError(
                f"No Ray cluster answers at {self.address} ({reason}); start it, forward the port of its dashboard "
                "(docs/operations.md), or give another --address."
            ) from error
        if not isinstance(found, dict):
            raise RunError(f"{self.address} is no Ray dashboard; give the address of one, as {DEFAULT_ADDRESS}.")
        return found

    def _refused(self, code: int, elsewhere: str | None) -> RunError:
        if elsewhere and 300 <= code < 400:
            url = urlsplit(elsewhere)
            return RunError(
                f"{self.address} sends its callers elsewhere, and a token must not follow; if that place is the "
                f"cluster's, give it yourself: --address {url.scheme}://{url.hostname}."
            )
        if code == 401:
            return RunError(
                f"The cluster at {self.address} wants a token, and none was found; put the one that the cluster was "
                "started with into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH."
            )
        if code == 403:
            return RunError(
                f"The cluster at {self.address} refused the token; use the one that it was started with: "
                "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, in this order."
            )
        return RunError(
            f"{self.address} answered with HTTP {code}: it is no Ray dashboard, or one that is not up yet; give the "
            f"address of a dashboard, as {DEFAULT_ADDRESS}."
        )


def dashboard_of(address: str | None) -> Dashboard:
    """The dashboard at `address`, else where RAY_API_SERVER_ADDRESS or RAY_ADDRESS says, else on this machine."""
    environment = [os.environ.get(name) for name in _ADDRESSES]
    named = address or next((text for text in environment if text and "://" in text), DEFAULT_ADDRESS)
    url = _split(named if "://" in named else f"http://{named}")
    said = "--address" if address else next((name for name in _ADDRESSES if os.environ.get(name) == named), "--address")
    if url.password is not None or url.username is not None:
        raise ConfigError(f"{said} must not hold a password, because it is printed; use a token (RAY_AUTH_TOKEN_PATH).")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(
            f"{said} ({named}) must be the address of a Ray dashboard; use http://HOST:8265, not that of Ray itself."
        )
    token = _token()
    return Dashboard(
        f"{url.scheme}://{url.netloc}{url.path}".rstrip("/"), {"Authorization": f"Bearer {token}"} if token else {}
    )


def read_facts(dashboard: Dashboard) -> ClusterFacts:
    """What the cluster is now; raises RunError when it cannot be reached."""
    try:
        return _facts(dashboard)
    except (KeyError, TypeError, AttributeError) as error:  # JSON, of another shape
        raise RunError(
            f"{dashboard.address} answers, and not as the dashboard of a Ray cluster does; give the address of one, as "
            f"{DEFAULT_ADDRESS}."
        ) from error


def _facts(dashboard: Dashboard) -> ClusterFacts:
    version = dashboard.get("/api/version")
    metadata = dashboard.get("/api/v0/cluster_metadata")["data"]
    listed = dashboard.get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
    status = dashboard.get("/api/cluster_status")["data"].get("clusterStatus") or {}
    return ClusterFacts(
        ray_version=str(version["ray_version"]),
        python_version=str(metadata.get("pythonVersion", "")),
        machines=tuple(_machine(node) for node in listed if node["state"] == "ALIVE"),
        autoscales=_autoscales(status.get("autoscalerReport") or {}),
    )


def installed_ray() -> str:
    """The version of Ray beside this genrec."""
    return importlib.metadata.version("ray")


def check_versions(facts: ClusterFacts) -> None:
    """Raises ConfigError for a cluster of another Ray (2.60.1 fits 2.60.0) or of a Python that genrec has not."""
    mine = installed_ray()
    if facts.ray_version.split(".")[:2] != mine.split(".")[:2]:
        raise ConfigError(
            f"The cluster runs Ray {facts.ray_version}, and genrec here has Ray {mine}; two numbers must agree: "
            f"use an image with Ray {mine} (launch/Dockerfile), or genrec's version for that Ray."
        )
    python = facts.python_version.split(".")[:2]
    supported = [f"{major}.{minor}" for major, minor in SUPPORTED_PYTHONS]
    if python != [""] and ".".join(python) not in supported:
        raise ConfigError(
            f"The cluster runs Python {facts.python_version}, and genrec needs {' or '.join(supported)}; use another "
            "image (launch/Dockerfile)."
        )


def check_size(config: ExperimentConfig, facts: ClusterFacts) -> str | None:
    """Raises ConfigError when the run can never start there; a sentence when only an autoscaler could make room."""
    try:
        check_room(config, facts.machines)
    except ConfigError as error:
        if facts.autoscales is False and not config.placement.wait_s:
            raise
        wait = "" if config.placement.wait_s else " Give the run time for that with placement.wait_s=1800."
        return f"The cluster has no room yet: {error} It may grow.{wait}"
    return None


def _autoscales(report: dict[str, Any]) -> bool | None:
    """Whether machines come and go. Without an autoscaler each node is a type of its own, named after its id."""
    types = set((report.get("nodeTypeMapping") or {}).values())
    return any(re.fullmatch(r"node_[0-9a-f]{40,}", name) is None for name in types) if types else None


def _machine(node: dict[str, Any]) -> Machine:
    total = node["resources_total"]
    return Machine(total.get("CPU", 0.0), total.get("GPU", 0.0), node.get("labels") or {})


def _split(url: str) -> SplitResult:
    """The parts of a URL; all are empty where it is none, as with a port that is no number."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # is read, and refused, when it is asked for
    except ValueError:
        return urlsplit("")
    return parts


def _token() -> str | None:
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return _one_word(token, "RAY_AUTH_TOKEN")
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return _one_word(path.read_text(encoding="ascii", errors="replace"), str(path))
    except FileNotFoundError:
        if named:
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH names {named}, which does not exist; correct it.") from None
        return None
    except OSError as error:
        raise ConfigError(f"The token in {path} cannot be read ({error.strerror}); make it yours.") from error


def _one_word(text: str, where: str) -> str | None:
    """A token that fits a header; what would not is refused here, because the error of a header shows what it holds."""
    token = text.strip()
    if re.fullmatch(r"[!-~]*", token) is None:
        raise ConfigError(f"{where} must hold a token and nothing else: one word of plain characters; correct it.")
    return token or None
