"""No token and no address of the developer's own; a dashboard that answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_fakes import FakeDashboard, running


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-a-test"))


@pytest.fixture
def dashboard() -> Iterator[FakeDashboard]:
    with running(FakeDashboard()) as found:
        yield found
