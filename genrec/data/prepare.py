"""`genrec prepare`: a log becomes a prepared data set (contract 2), once; `ensure_prepared` makes sure that it has.

What happens in between is in `prepare_job.py`.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genrec.config import DataConfig, MixtureSource
from genrec.data.local_tasks import RunTasks, open_tasks
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.mixture import CopyTask, MixtureJob, current_hashes, stale_sets
from genrec.data.prepare_job import PrepareJob, Progress, check_settings
from genrec.data.prepared_folder import check_target, keep_only, publish, restore, work_folder
from genrec.data.saved_tasks import map_saved
from genrec.data.schema import MANIFEST_FILE
from genrec.data.sources import Log, open_log
from genrec.data.stored_set import worked_on
from genrec.errors import DataError

Say = Callable[[str], None]
"""Called with a sentence for the user."""

_IRRELEVANT = (
    "prepared",
    "max_rejected_fraction",
    "max_rejected_files",
    "source.download_dir",
)  # settings that change no byte of the set


def ensure_prepared(config: DataConfig, progress: Progress | None = None, say: Say | None = None) -> Manifest:
    """The manifest of `config.prepared`, which is prepared first when it is not there yet.

    Raises DataError when it was prepared with other settings. Nothing is started unless there is something to prepare.
    """
    with worked_on(config) as here:
        return _ensure_prepared(here, progress, say)


def _ensure_prepared(config: DataConfig, progress: Progress | None, say: Say | None) -> Manifest:
    restore(Path(config.prepared).absolute())
    if not (Path(config.prepared) / MANIFEST_FILE).exists():
        return _prepare(config, overwrite=False, progress=progress, say=say)
    manifest = load_manifest(config.prepared)
    differences = config_differences(manifest, config)
    if isinstance(config.source, MixtureSource) and not differences:
        differences = stale_sets(config.source, manifest)
    if differences:
        raise DataError(
            f"{config.prepared} was prepared with other settings ({'; '.join(differences)}); run "
            "`genrec prepare CONFIG --overwrite` to make it again, or set data.prepared to another folder."
        )
    return manifest


def config_differences(manifest: Manifest, config: DataConfig) -> list[str]:
    """Settings that made the prepared set and are not those of `config`, as readable sentences."""
    try:
        before = _flatten(DataConfig.model_validate(manifest.config).model_dump(mode="json"))
    except ValidationError:
        return ["its settings are those of another version of genrec"]
    now = _flatten(config.model_dump(mode="json"))
    return [
        f"data.{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in _IRRELEVANT
    ]


def prepare(
    config: DataConfig, *, overwrite: bool = False, progress: Progress | None = None, say: Say | None = None
) -> Manifest:
    """Prepares `config.prepared` from its source, and returns the manifest.

    Goes on where an earlier process with the same config and log was killed. Raises DataError when the set exists
    (unless `overwrite`), when the log is missing, damaged or empty, when more than `max_rejected_fraction` of its rows
    are bad, or when the filters leave nothing. A set that existed then stays.
    """
    with worked_on(config) as here:
        return _prepare(here, overwrite=overwrite, progress=progress, say=say)


def _prepare(config: DataConfig, *, overwrite: bool, progress: Progress | None, say: Say | None) -> Manifest:
    report = progress or (lambda phase, done, total: None)
    target = Path(config.prepared).absolute()  # tasks may run in another folder
    check_target(target, overwrite=overwrite)
    with work_folder(target) as work, open_tasks() as run_tasks:
        if isinstance(config.source, MixtureSource):
            manifest, finished = _mix(config, config.source, work, run_tasks, report)
        else:
            manifest, finished = _prepare_log(config, work, run_tasks, report, say)
        check_target(target, overwrite=overwrite)
        publish(work, finished, target)
    report("finish", 1.0, 1.0)
    return manifest


def _prepare_log(
    config: DataConfig, work: Path, run_tasks: RunTasks, report: Progress, say: Say | None
) -> tuple[Manifest, Path]:
    """The manifest, and the folder with the finished set."""
    source = work / f"source-{_fingerprint(config.source.model_dump_json())}"
    keep_only(work, source.name, "job-*")
    log = open_log(
        config.source,
        source,
        lambda fraction: report("open", fraction, 1.0),
        max_rejected_files=config.max_rejected_files,
        run=lambda function, tasks: map_saved(run_tasks, function, tasks, source / "written"),
    )
    check_settings(config, log)
    report("open", 1.0, 1.0)
    folder = work / f"job-{_fingerprint(config.model_dump_json(), *_describe(log))}"
    keep_only(work, source.name, folder.name)
    job = PrepareJob(config, log, folder, run_tasks, report)
    if job.num_done and say is not None:
        say(f"resumed: {job.num_done} of {job.num_tasks} tasks were done")
    return job.run(), job.finished


def _mix(
    config: DataConfig, source: MixtureSource, work: Path, run_tasks: RunTasks, report: Progress
) -> tuple[Manifest, Path]:
    """The same for a mixture; it goes on, too, while its sets are what they were."""
    folder = work / f"mixture-{_fingerprint(config.model_dump_json(), *current_hashes(source).values())}"
    keep_only(work, folder.name)
    job = MixtureJob(config, folder)

    def copy_all(function: Callable[[CopyTask], str], tasks: Sequence[CopyTask]) -> Iterator[str]:
        for done, name in enumerate(map_saved(run_tasks, function, tasks, folder / "copied"), start=1):
            report("write", done / len(tasks), 1.0)
            yield name

    return job.run(copy_all), job.finished


def _describe(log: Log) -> list[str]:
    """What must be the same for work on a log to go on: its parts, and when their files were written."""
    changed = {part.file.path: os.stat(part.file.path).st_mtime_ns for part in log.parts if part.file.root is None}
    return [*map(repr, log.parts), *map(repr, changed.items())]


def _fingerprint(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
