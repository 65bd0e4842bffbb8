"""The overhead benchmark: bare PyTorch under torchrun computes what one process computes, and ratios are of a round."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_matrices import BASE

import overhead
from bare_loop import bare_loop
from genrec.bench.result import Row
from genrec.config import ExperimentConfig, config_from_dict
from genrec.data.prepare import ensure_prepared
from genrec_command import CommandFailed, run_command, torchrun
from overhead import compare, medians_of


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    """A prepared set, and its config for two workers that add up two micro-batches each; the file is tiny.yaml."""
    values: dict[str, Any] = json.loads(json.dumps(BASE))
    values["data"]["prepared"] = str(tmp_path / "prepared")
    values["batch"]["micro_batches_per_step"] = 4
    values["cluster"]["workers"] = 2
    (tmp_path / "tiny.yaml").write_text(json.dumps(values), encoding="utf-8")
    config = config_from_dict(values)
    ensure_prepared(config.data)
    return config


def test_two_processes_under_torchrun_compute_what_one_does(config: ExperimentConfig, tmp_path: Path) -> None:
    alone = bare_loop(config, 0.1)
    found = overhead.loop(str(tmp_path / "tiny.yaml"), [], 0.1, 2)
    assert found["loss_after_warmup"] == pytest.approx(alone["loss_after_warmup"], rel=1e-5)
    assert alone["loss_after_warmup"] > 1
    assert found["events_per_s"] > 0 and alone["events_per_s"] > 0


def test_a_config_for_gpus_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "gpu.yaml"
    file.write_text(json.dumps(BASE), encoding="utf-8")
    script = str(Path(overhead.__file__).with_name("bare_loop.py"))
    with pytest.raises(CommandFailed, match=r"CPUs and fp32, and this config has .*engine\.precision=bf16") as caught:
        run_command([sys.executable, script, str(file), "engine.precision=bf16"], timeout_s=120)
    assert caught.value.finished.status == "failed"


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child.txt"
    code = "import signal, sys, os; open(sys.argv[1], 'w').write(str(os.getpid())); signal.pause()"
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    with pytest.raises(CommandFailed) as caught:
        run_command([sys.executable, "-c", start, code, str(note)], timeout_s=2)
    assert caught.value.finished.status == "out-of-time"
    if note.is_file():
        done = subprocess.run(["ps", "-o", "stat=", "-p", note.read_text()], capture_output=True, text=True, timeout=30)
        assert done.stdout.strip() in ("", "Z")


def test_torchrun_starts_its_words_as_local_workers() -> None:
    command = torchrun(3, "-m", "genrec", "train")
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[-5:] == ["--nproc-per-node", "3", "-m", "genrec", "train"]


def test_every_round_asks_each_side_and_a_failure_is_a_row(
    config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def loop(file: str, overrides: list[str], seconds: float, workers: int | None) -> dict[str, float]:
        return {"events_per_s": 200.0 if workers is None else 100.0 * workers + 50}

    def trainer(file: str, overrides: list[str], seconds: float, expected: float, launcher: str) -> dict[str, float]:
        asked.append(expected)
        if len(asked) == 2:
            raise CommandFailed(["genrec"], overhead.Finished("out-of-time", "not done", 9.0))
        return {"events_per_s": 225.0, "data_wait_fraction": 0.25, "seconds_to_first_step": 9.0}

    monkeypatch.setattr(overhead, "loop", loop)
    monkeypatch.setattr(overhead, "trainer", trainer)
    result = compare(str(tmp_path / "tiny.yaml"), [], 2, 1.0, "local")
    assert [row["side"] for row in result.rows] == ["bare", "torchrun", "trainer"] * 2
    assert [row["workers"] for row in result.rows[:3]] == [1, 2, 2]
    assert asked == [250.0, 250.0]
    assert (result.rows[5]["status"], result.rows[5]["error"]) == ("out-of-time", "not done")
    assert result.name == "overhead"
    assert result.medians["trainer_over_torchrun"] == {"median": 0.9, "minimum": 0.9, "maximum": 0.9, "count": 1}


def test_ratios_are_taken_within_a_round() -> None:
    speeds = {"bare": (100.0, 50.0), "torchrun": (90.0, 40.0), "trainer": (81.0, 44.0)}
    rows: list[Row] = [
        {"round": number, "side": side, "events_per_s": speed, "status": "ok"}
        for side, of_rounds in speeds.items()
        for number, speed in enumerate(of_rounds)
    ]
    for row in rows[-2:]:
        row |= {"data_wait_fraction": 0.0, "seconds_to_first_step": 3.0}
    found = medians_of(rows)
    assert found["trainer_over_torchrun"] == pytest.approx({"median": 1.0, "minimum": 0.9, "maximum": 1.1, "count": 2})
    assert found["trainer_over_bare"]["minimum"] == pytest.approx(0.81)
    assert found["torchrun_events_per_s"]["median"] == 65.0
