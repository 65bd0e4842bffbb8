"""SIGTERM or Ctrl-C saves the step just done, ends with one sentence, and the same command goes on exactly there."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from genrec.config import ExperimentConfig
from genrec.errors import PreemptedError
from genrec.run_dir import RunDir, run_dir_of
from genrec.training import local
from genrec.training.checkpoint import latest_checkpoint, read_info
from genrec.training.checkpoint_store import CheckpointStore
from genrec.training.hooks import PreemptionHook
from genrec.training.meters import StepMeter
from genrec.training.preemption import Notice, notice_of_process, signals_as_notices
from genrec.training.state import TrainState

COMMAND = "import sys; from genrec.cli import main; sys.argv[0] = 'genrec'; main()"


@pytest.fixture
def config(tmp_path, write_prepared, make_config) -> ExperimentConfig:
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, 60, generator.integers(3, 12)).tolist() for _ in range(400)]
    return make_config(
        write_prepared(tmp_path / "set", sequences, num_items=60),
        "engine={name: torch}",
        "batch={tokens_per_step: 64, micro_batches_per_step: 2}",
        "train={max_steps: 20, log_every_steps: 1, evaluate_every_epochs: 1000000}",
    )


def last_step(run: RunDir) -> int:
    store = CheckpointStore(run.checkpoints_path)
    return read_info(store, latest_checkpoint(store)).step


def train_losses(run: RunDir) -> dict[int, float]:
    records = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    lines = [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]
    assert len(lines) == len(dict(lines)), "a step was trained twice"
    return dict(lines)


def raise_signal_after(step: int, number: int, monkeypatch) -> None:
    """The process gets a signal while the hooks of that step run."""
    after_step = PreemptionHook.after_step

    def with_signal(hook: PreemptionHook, state: TrainState, meter: StepMeter) -> None:
        if state.step == step:
            signal.raise_signal(number)
        after_step(hook, state, meter)

    monkeypatch.setattr(PreemptionHook, "after_step", with_signal)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_leave_loses_no_step(config, monkeypatch, number: int, exit_code: int) -> None:
    run = run_dir_of(config)
    run.create(config)
    straight = config.model_copy(update={"name": "straight"})
    run_dir_of(straight).create(straight)
    local.fit(straight, run_dir_of(straight), time.time())
    with monkeypatch.context() as patch:
        raise_signal_after(6, number, patch)
        # Seen in the vote of the next step, so that all workers see it in the same one.
        with pytest.raises(PreemptedError, match="saved before step 7, and the same command goes on") as told:
            local.fit(config, run, time.time())
    assert told.value.exit_code == exit_code
    assert last_step(run) == 7
    local.fit(config, run, time.time())
    assert train_losses(run) == train_losses(run_dir_of(straight))


def test_the_command_ends_with_one_sentence_and_143(config, tmp_path) -> None:
    file = tmp_path / "config.yaml"
    values = config.model_dump(mode="json")
    values["train"]["max_steps"] = 1_000_000
    values["data"] = {
        "source": {"name": "synthetic", "num_events": 10_000, "num_items": 100},
        "prepared": str(tmp_path / "log"),
    }
    file.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-c", COMMAND, "train", str(file), "--launcher", "local"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = run_dir_of(config)
    try:
        deadline = time.monotonic() + 90
        while not (run.metrics_path.is_file() and len(run.metrics_path.read_text().splitlines()) > 3):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no step in 90 s"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143, errors
    steps = train_losses(run)
    assert f"saved before step {len(steps)}" in errors.replace("\n", " ")
    assert "Traceback" not in errors
    assert last_step(run) == len(steps)


def test_a_second_signal_or_one_outside_training_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_as_notices():
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
        assert ended.value.code == 143
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with notice_of_process().listening():
            signal.raise_signal(signal.SIGTERM)
            assert notice_of_process().given
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_notice_of_an_earlier_run_is_forgotten() -> None:
    notice = Notice()
    with notice.listening():
        assert notice.take(signal.SIGTERM)
    assert not notice.take(signal.SIGTERM)
    with notice.listening():
        assert not notice.given


def test_the_cluster_is_asked_now_and_then(monkeypatch) -> None:
    notice, moment = Notice(), [0.0]
    monkeypatch.setattr("genrec.training.preemption.time", type("Clock", (), {"monotonic": lambda: moment[0]}))
    answers = [False, True]
    with notice.listening(lambda: answers.pop(0)):
        notice.ask_cluster()
        assert not notice.ask_is_due()
        moment[0] = 5.0
        assert notice.ask_is_due()
        assert notice.ask_cluster()
    assert not notice.ask_is_due()


def test_signals_stay_as_they_are_outside_the_main_thread() -> None:
    code = (
        "import signal, threading\n"
        "from genrec.training.preemption import signals_as_notices\n"
        "def inside():\n"
        "    with signals_as_notices():\n"
        "        print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
        "thread = threading.Thread(target=inside)\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "True"
