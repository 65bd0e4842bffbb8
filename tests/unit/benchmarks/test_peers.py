from pathlib import Path
from typing import Any

import pytest

import peers
from genrec.bench.result import read_result
from peer_process import Finished

SPEEDS = {"genrec-loop": 30.0, "genrec": 20.0, "rectools": 10.0}


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Fakes every child process; what was run, in order."""
    run: list[tuple[str, str]] = []

    def run_side(
        options: Any, side: str, what: str, out: Path, flags: list[Any], timeout_s: float
    ) -> tuple[Finished, dict[str, Any]]:
        run.append((what, side))
        if side == "genrec" and run.count((what, side)) == 2:
            return Finished("out-of-memory", "killed", 1.0), {}
        return Finished("ok", "", 1.0), {"events_per_s": SPEEDS[side], "points": []}

    monkeypatch.setenv("GENREC_DATA", str(tmp_path))
    monkeypatch.setattr(peers, "_run_side", run_side)
    monkeypatch.setattr(peers, "rectools_python", lambda: Path("python"))
    monkeypatch.setattr(peers, "rectools_versions", lambda: dict.fromkeys(peers.THEIR_VERSIONS, "1"))
    return run


def test_sides_take_turns_and_a_failed_reading_is_a_row(calls: list[tuple[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    arguments = ["run", "--only", "throughput", "--models", "sasrec-full", "--rounds", "2", "--json", str(path)]
    assert peers.main(arguments) == 1
    assert [side for _, side in calls] == ["genrec-loop", "genrec", "rectools"] * 2
    result = read_result(path)
    assert [row["status"] for row in result.rows] == ["ok", "ok", "ok", "ok", "out-of-memory", "ok"]
    assert result.medians["sasrec-full"]["times_rectools"]["genrec"]["count"] == 1
    assert result.medians["sasrec-full"]["times_rectools"]["genrec-loop"]["median"] == 3.0
    assert result.config["models"][0]["max_length"] == 200
    assert result.versions["rectools/rectools"] == "1"


def test_a_curve_without_a_point_is_out_of_time(calls: list[tuple[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    assert peers.main(["run", "--only", "quality", "--max-seconds", "7", "--json", str(path)]) == 1
    assert [side for _, side in calls] == ["genrec", "rectools"]
    messages = {(row["status"], row["message"]) for row in read_result(path).rows}
    assert messages == {("out-of-time", "no validation within 7 s")}


def test_two_parts_are_two_files(calls: list[tuple[str, str]], tmp_path: Path) -> None:
    peers.main(["run", "--rounds", "1", "--json", str(tmp_path / "peers.json")])
    assert {path.name for path in tmp_path.glob("*.json")} == {"peers-throughput.json", "peers-quality.json"}


def test_the_data_folder_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("GENREC_DATA", raising=False)
    assert peers.main(["run"]) == 2
    assert "GENREC_DATA" in capsys.readouterr().out
