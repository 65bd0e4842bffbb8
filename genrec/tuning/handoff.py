"""Population-based training's hand-off: a trial goes on from another's checkpoint, as a run of its own.

Ray Tune holds no checkpoint of a trial whose workers Ray Train runs; it passes on a pointer. What is handed over is the
donor's whole checkpoint: weights, optimizer state and cursor, every file with the digest that it was written with. Only
state.json is written anew, because the new run has other settings, and a best model of its own to find. The new run is
a new folder, so the workers of the life before, which may still be ending, write elsewhere.
"""

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

from genrec.config import ExperimentConfig
from genrec.errors import ConfigError, StorageError
from genrec.run_dir import RunDir, run_dir_of
from genrec.training.checkpoint import STATE_FILE, by_digest, by_size, config_hash, info_in, list_name
from genrec.training.checkpoint_store import CheckpointStore, checkpoint_name, describe_stream
from genrec.training.resume_guard import FREE, KINDS, ON_REQUEST

WAIT_S = 120.0
"""How long a checkpoint that is still being uploaded is waited for."""


def check_mutable(keys: list[str]) -> None:
    """Raises ConfigError when one of the searched settings decides what a step is: a run cannot take it over."""
    for key in keys:
        if key in KINDS or not any(key == name or key.startswith(f"{name}.") for name in (*ON_REQUEST, *FREE)):
            raise ConfigError(
                f"scheduler pbt cannot change {key} while a trial trains, because it decides what a step or the model "
                f"is; search settings of {', '.join(ON_REQUEST)} only, or use scheduler: {{name: asha}}."
            )


def hand_over(donor: Path, step: int, config: ExperimentConfig) -> RunDir:
    """The run directory of `config`, new, with the donor's checkpoint before step `step`; `fit` goes on from it.

    Raises StorageError when the checkpoint is not complete within two minutes; trying again may help.
    """
    source, name = CheckpointStore(RunDir(donor).checkpoints_path), checkpoint_name(step)
    _wait_until_complete(source, name)
    problem = by_digest(source, name)
    if problem is not None:
        raise StorageError(f"The checkpoint {source}/{name} cannot be handed over: {problem}.")
    run = run_dir_of(config)
    draft = run.root.with_name(f".{run.root.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(run.root, ignore_errors=True)  # of a hand-off that was killed before it was written down
    folder = RunDir(draft).checkpoints_path / name
    shutil.copytree(donor / "checkpoints" / name, folder)
    _restate(folder, config)
    draft.rename(run.root)
    return run


def _restate(folder: Path, config: ExperimentConfig) -> None:
    """Writes state.json for the new settings, and its digest into worker 0's list."""
    info = info_in(folder)
    values = config.model_dump(mode="json")
    state = replace(
        info.state, best_metric=None, best_step=None, validations_without_gain=0, tracker_id=None, stop_reason=None
    )
    new = replace(info, state=state, config=values, config_hash=config_hash(values), time_s=time.time())
    (folder / STATE_FILE).write_text(json.dumps(asdict(new), indent=1), encoding="utf-8")
    listed = folder / list_name(0)
    files = json.loads(listed.read_text(encoding="utf-8"))
    with (folder / STATE_FILE).open("rb") as stream:
        files[STATE_FILE] = describe_stream(stream)
    listed.write_text(json.dumps(files, indent=1), encoding="utf-8")


def _wait_until_complete(store: CheckpointStore, name: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while (problem := by_size(store, name)) is not None:
        if time.monotonic() > deadline:
            raise StorageError(f"The checkpoint {store}/{name} was not complete within {WAIT_S:.0f} s: {problem}.")
        time.sleep(0.2)
