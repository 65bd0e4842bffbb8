"""A preparation that was killed goes on where it was: what was done is not done again, and the result is the same."""

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from genrec.config import DataConfig
from genrec.data import prepare_job
from genrec.data.manifest import load_manifest
from genrec.data.prepare import prepare
from genrec.data.saved_tasks import map_saved
from genrec.errors import DataError

NUM_FILES = 10
ROWS_PER_FILE = 300_000
TIMEOUT_S = 240


def write_log(folder: Path, num_files: int = NUM_FILES, rows_per_file: int = ROWS_PER_FILE) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(num_files):
        columns = {"user": rng.integers(0, 40_000, rows_per_file), "item": rng.zipf(1.5, rows_per_file) % 50_000}
        times = np.sort(rng.integers(0, 10_000, rows_per_file)) + 10_000 * number
        pq.write_table(pa.table(columns | {"time": times}), folder / f"{number:02d}.parquet")
    return folder


def spoil(file: Path) -> None:
    """Makes the rows unreadable, and leaves the footer, the size and the time of the file."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(4)
        stream.write(bytes(before.st_size // 2))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def kill_when(command: list[str], work: Path, pattern: str, count: int, log: Path) -> list[Path]:
    """Runs the command until `count` files below `work` fit the pattern, and kills it: the files that were there."""
    with log.open("w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while len(found := sorted(work.glob(pattern))) < count:
                assert time.monotonic() < deadline, log.read_text()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.005)
                assert child.returncode is None, log.read_text()
        finally:
            processes = children_of(child.pid)
            child.kill()
            child.wait(30)
    while running := [pid for pid in processes if is_running(pid)]:
        assert time.monotonic() < deadline, running
    return found


def children_of(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for path in tasks for pid in path.read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def data_config(tmp_path: Path, name: str, **settings: Any) -> DataConfig:
    source = {"name": "parquet", "path": str(tmp_path / "log")}
    return DataConfig.model_validate({"source": source, "prepared": str(tmp_path / name), **settings})


@pytest.mark.timeout(900)
def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log")
    one = prepare(data_config(tmp_path, "one", num_shards=8))
    config = data_config(tmp_path, "two", num_shards=8)
    experiment = {"data": config.model_dump(mode="json"), "model": {"name": "sasrec"}, "loss": {"name": "full-softmax"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(experiment | {"name": "resumed", "train": {"max_epochs": 1}}))
    command = ["genrec", "prepare", str(tmp_path / "config.yaml")]
    work, output = tmp_path / ".two.preparing", tmp_path / "output.txt"

    read = kill_when(command, work, "job-*/read/*.pickle", 2, output)
    assert 2 <= len(read) < NUM_FILES and not (tmp_path / "two").exists()
    for part in read:
        spoil(log / f"{int(part.stem):02d}.parquet")  # a file is one part; whoever reads it again fails
    written = kill_when(command, work, "job-*/write/*.pickle", 1, output)
    resumed = re.search(r"resumed: (\d+) of 18 tasks were done", output.read_text())
    assert resumed and len(read) <= int(resumed[1]) < NUM_FILES
    assert 1 <= len(written) < 8
    for file in log.iterdir():
        spoil(file)

    done = subprocess.run(command, timeout=TIMEOUT_S, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    resumed = re.search(r"resumed: (\d+) of 18 tasks were done", done.stdout)
    assert resumed and NUM_FILES + len(written) <= int(resumed[1]) <= 18
    assert load_manifest(tmp_path / "two").content_hash == one.content_hash
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert not work.exists()


@pytest.mark.parametrize("change", ["config", "log", "nothing"])
def test_only_the_same_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    log = write_log(tmp_path / "log", num_files=2, rows_per_file=100)
    monkeypatch.setattr(prepare_job, "numbered_items", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(data_config(tmp_path, "set"))
    monkeypatch.undo()
    assert len(list((tmp_path / ".set.preparing").glob("job-*/read/*.pickle"))) == 2
    said: list[str] = []
    config = data_config(tmp_path, "set", **({"num_shards": 2} if change == "config" else {}))
    if change == "log":
        (log / "01.parquet").touch()
    prepare(config, say=said.append)
    assert said == (["resumed: 2 of 3 tasks were done"] if change == "nothing" else [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "set"]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_mistake_leaves_nothing(tmp_path: Path) -> None:
    write_log(tmp_path / "log", num_files=1, rows_per_file=100)
    with pytest.raises(DataError, match="drop every event"):
        prepare(data_config(tmp_path, "set", min_user_events=1_000))
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_results_are_read_again_and_calls_are_not_made_again(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    calls.mkdir()

    def square(number: int) -> int:
        (calls / f"{number}-{os.getpid()}-{time.monotonic_ns()}").touch()
        return number**2

    half = map_saved(map, square, range(4), tmp_path / "results")
    assert next(half) == 0
    half.close()
    (tmp_path / "results/000003.draft").write_bytes(b"half")
    assert list(map_saved(map, square, range(4), tmp_path / "results")) == [0, 1, 4, 9]
    num_calls = len(list(calls.iterdir()))
    assert list(map_saved(map, square, range(4), tmp_path / "results")) == [0, 1, 4, 9]
    assert len(list(calls.iterdir())) == num_calls and len(list(calls.glob("0-*"))) == 1
