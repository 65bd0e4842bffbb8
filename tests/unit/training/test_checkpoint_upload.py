"""Uploads go on beside training: what a save waits for, what ends it, and that every worker learns of a failure."""

import dataclasses
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from step_guard_context import context_of
from storage_that_fails import FailingFiles

from genrec.data.manifest import load_manifest
from genrec.errors import PreemptedError, StorageError
from genrec.training.background import in_background
from genrec.training.checkpoint import by_digest
from genrec.training.checkpoint_store import CheckpointStore
from genrec.training.context import WorkerContext
from genrec.training.hooks import CheckpointHook, PreemptionHook
from genrec.training.meters import StepMeter
from genrec.training.preemption import Notice
from genrec.training.state import TrainState


class FileEngine:
    """Writes one file a worker, which says how often it was saved."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.num_saves = 0
        self.model = SimpleNamespace(semantic_ids=None)

    def save(self, folder: Path) -> None:
        self.num_saves += 1
        (folder / f"shard-{self.rank}").write_text(str(self.num_saves))


class Validation:
    end_step = 100

    def due(self, state: TrainState) -> bool:
        return False


def publish(folder: Path, name: str, upload: Callable[[], None], _: bool) -> "Future[None]":
    return in_background(upload, name=name, finally_=lambda: shutil.rmtree(folder))


@pytest.fixture(autouse=True)
def drafts(tmp_path: Path, monkeypatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "drafts"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def make_hook(tmp_path: Path, write_prepared, make_config):
    prepared = write_prepared(tmp_path / "set", [[1, 2, 3, 4]])

    def make(
        files: FailingFiles, *overrides: str, rank: int = 0, workers: int = 1, kind: type[WorkerContext] = WorkerContext
    ) -> CheckpointHook:
        config = make_config(
            prepared, f"cluster.workers={workers}", f"batch.micro_batches_per_step={workers}", *overrides
        )
        base = context_of(tmp_path / "run", workers)
        values = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
        context = kind(**values | {"rank": rank, "store": files.store(str(tmp_path / "store")), "publish": publish})
        return CheckpointHook(config, FileEngine(rank), context, load_manifest(prepared), Validation())

    return make


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Writing to the storage waits until it is set."""
    event = threading.Event()
    yield event
    event.set()


def started(work: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    """A thread that does the work, and what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, raised


def is_waiting(thread: threading.Thread) -> bool:
    thread.join(0.3)
    return thread.is_alive()


def ended(thread: threading.Thread) -> bool:
    thread.join(60)
    return not thread.is_alive()


def test_a_save_does_not_wait_for_its_own_upload_and_the_next_one_does(make_hook, gate, drafts: Path) -> None:
    files = FailingFiles(gate=gate)
    hook, meter = make_hook(files), StepMeter()
    hook.save(TrainState(step=4), meter)  # returns with the storage shut
    assert hook.engine.num_saves == 1
    assert hook.context.store.names() in ([], ["step_00000004"])
    assert meter.excluded_s < 30
    before = time.perf_counter()
    thread, raised = started(lambda: hook.save(TrainState(step=8), meter))
    assert is_waiting(thread)
    assert hook.engine.num_saves == 1  # at most one upload and one set of files at a time
    gate.set()
    assert ended(thread)
    assert raised == []
    assert 0.3 <= meter.excluded_s <= time.perf_counter() - before + 30
    hook.finish(meter)
    store = hook.context.store
    assert [by_digest(store, name) for name in store.names()] == [None, None]
    assert store.read("step_00000004", "shard-0") == b"1"
    assert store.read("step_00000008", "shard-0") == b"2"
    order = [path.split("/")[-2] for path in files.opened_for_writing if "finished" not in path]
    assert order == sorted(order)
    assert list(drafts.iterdir()) == []


@pytest.mark.parametrize("ending", ["finish", "last step", "stop reason", "told to leave", "sync"])
def test_what_ends_training_waits_until_the_upload_is_complete(make_hook, gate, ending: str) -> None:
    hook = make_hook(FailingFiles(gate=gate), f"train.checkpoint_upload={'sync' if ending == 'sync' else 'async'}")
    meter, state = StepMeter(), TrainState(step=100 if ending == "last step" else 8)

    def end() -> None:
        if ending == "told to leave":
            guard = type("Guard", (), {"told_to_leave": True, "asks_cluster": False})()
            PreemptionHook(guard, Notice(), hook).after_step(state, meter)
        elif ending in ("finish", "sync"):
            hook.save(state, meter)
            if ending == "finish":
                hook.finish(meter)
        else:
            state.stop_reason = "enough" if ending == "stop reason" else None
            hook.after_step(state, meter)

    thread, raised = started(end)
    assert is_waiting(thread)
    assert hook.context.store.names() in ([], [f"step_{state.step:08d}"])
    gate.set()
    assert ended(thread)
    assert [type(error) for error in raised] == ([PreemptedError] if ending == "told to leave" else [])
    assert by_digest(hook.context.store, f"step_{state.step:08d}") is None


def test_an_upload_that_fails_is_raised_by_the_next_save_and_older_ones_count(make_hook, drafts: Path) -> None:
    files = FailingFiles("open_output_stream", path="step_00000008")
    hook, meter = make_hook(files), StepMeter()
    hook.save(TrainState(step=4), meter)
    hook.save(TrainState(step=8), meter)
    with pytest.raises(StorageError, match=r"store could not be written \(no route to host\).*last checkpoint"):
        hook.save(TrainState(step=12), meter)
    store = hook.context.store
    assert by_digest(store, "step_00000004") is None
    assert by_digest(store, "step_00000008") is not None
    assert list(drafts.iterdir()) == []
    hook.drain()  # nothing is under way any more
    files.fails = False
    hook.save(TrainState(step=16), meter)
    hook.finish(meter)
    assert by_digest(store, "step_00000016") is None


def test_when_training_fails_an_upload_under_way_comes_to_its_end(make_hook, gate, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("genrec.training.hooks.logger.warning", lambda text, *values: said.append(text % values))
    hook = make_hook(FailingFiles(gate=gate))
    hook.save(TrainState(step=4), StepMeter())
    thread, raised = started(hook.drain)
    assert is_waiting(thread)
    gate.set()
    assert ended(thread)
    assert raised == said == []
    assert by_digest(hook.context.store, "step_00000004") is None
    failing = make_hook(FailingFiles("open_output_stream"))
    failing.save(TrainState(step=8), StepMeter())
    failing.drain()
    assert "no route to host" in said[0]


def test_a_long_wait_is_named(make_hook, gate, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("genrec.training.hooks.logger.warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr("genrec.training.hooks._NOTABLE_WAIT_S", 0.2)
    hook = make_hook(FailingFiles(gate=gate))
    hook.save(TrainState(step=4), StepMeter())
    thread, _ = started(lambda: hook.save(TrainState(step=8), StepMeter()))
    assert is_waiting(thread)
    gate.set()
    assert ended(thread)
    assert "waited 0." in said[0]
    assert "train.checkpoint_every_steps" in said[0]


MEETING = threading.Barrier(2)
SUMS: list[float] = [0.0, 0.0]


class OneOfTwo(WorkerContext):
    """One of two workers in two threads: `all_reduce` waits for both, and fails when one does not come."""

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        SUMS[self.rank] = float(values[0])
        MEETING.wait(30)
        total = torch.tensor([sum(SUMS)], dtype=torch.float64)
        MEETING.wait(30)
        return total


@pytest.mark.parametrize("guilty", [0, 1])
def test_when_the_upload_of_one_worker_fails_all_of_them_end(make_hook, guilty: int) -> None:
    files = [FailingFiles("open_output_stream" if rank == guilty else None, path="step_00000008") for rank in range(2)]
    hooks = [make_hook(files[rank], rank=rank, workers=2, kind=OneOfTwo) for rank in range(2)]

    def train(hook: CheckpointHook) -> None:
        for step in (4, 8, 12):
            hook.save(TrainState(step=step), StepMeter())

    threads = [started(lambda hook=hook: train(hook)) for hook in hooks]
    assert all(ended(thread) for thread, _ in threads)
    errors = [raised[0] for _, raised in threads]
    assert all(isinstance(error, StorageError) for error in errors), errors
    assert "no route to host" in str(errors[guilty])
    assert "Another worker could not upload" in str(errors[1 - guilty])
    store = CheckpointStore(hooks[0].context.store.root)
    assert by_digest(store, "step_00000004") is None
    assert by_digest(store, "step_00000008") is not None
    assert store.names()[-1] == "step_00000008"  # nobody went on


def test_a_checkpoint_is_pruned_only_when_all_workers_have_finished_a_newer_one(make_hook) -> None:
    hook, meter = make_hook(FailingFiles(), "train.keep_checkpoints=1"), StepMeter()
    for step, left in ((4, []), (8, [4]), (12, [8])):
        hook.save(TrainState(step=step), meter)
        hook._upload.result()
        assert hook.context.store.names() == [f"step_{s:08d}" for s in (*left, step)]
    hook.finish(meter)
    assert hook.context.store.names() == ["step_00000012"]
    assert "finished" in hook.context.store.sizes("step_00000012")


def test_drafts_of_a_killed_worker_are_removed_by_the_next_one(make_hook, drafts: Path) -> None:
    hook = make_hook(FailingFiles())
    left = Path(tempfile.mkdtemp(prefix=hook._draft_prefix))
    (left / "shard-0").write_bytes(b"1")
    other = Path(tempfile.mkdtemp(prefix="genrec-checkpoint-of-another-run-"))
    make_hook(FailingFiles(), rank=1)
    assert left.exists()
    make_hook(FailingFiles())
    assert not left.exists()
    assert other.exists()
