"""Jobs on a running cluster, through Ray's job server: submit, follow, list, stop."""

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from genrec.errors import ConfigError, RunError
from genrec.launch.cluster_facts import Dashboard
from genrec.launch.options import EntrypointOptions, as_pairs

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
RECONNECTS = 5
RECONNECT_S = 2.0
STOP_TIMEOUT_S = 60.0


class Client(Protocol):
    """What is used of Ray's `JobSubmissionClient`."""

    def submit_job(self, *, entrypoint: str, **options: Any) -> str:
        """Uploads what the runtime environment names and starts the job; its id."""

    def stop_job(self, job_id: str) -> bool:
        """Asks a job to end; whether it was running."""

    def get_job_info(self, job_id: str) -> Any:
        """Ray's `JobDetails`."""

    def list_jobs(self) -> list[Any]:
        """The same of all jobs."""

    def get_job_logs(self, job_id: str) -> str:
        """What a job has printed."""

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """The same from its beginning, in pieces, as long as the job runs."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the cluster tells it; times in seconds since 1970, None where they are to come."""

    id: str
    status: str
    command: str
    run: str | None
    commit: str | None
    genrec_version: str | None
    started_s: float | None
    ended_s: float | None
    message: str
    exit_code: int | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ENDED

    @property
    def result(self) -> int:
        """The exit code that a command which followed the job ends with."""
        return 0 if self.status == "SUCCEEDED" else self.exit_code or 1


def connect(dashboard: Dashboard) -> Client:
    """Ray's client for a dashboard that has answered already."""
    with _only_address(dashboard.address):
        from ray.job_submission import JobSubmissionClient

        for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.WARNING)  # uploads and connections: said in our words

        try:
            client: Client = JobSubmissionClient(dashboard.address, headers=dict(dashboard.headers))
        except _failures() as error:
            raise RunError(f"The job server at {dashboard.address} does not answer: {_sentence(error)}.") from error
    return client


def submit(
    client: Client,
    entrypoint: str,
    submission_id: str,
    archive: Path,
    options: EntrypointOptions,
    metadata: dict[str, str],
    packages: list[str] | None = None,
) -> str:
    """Uploads the archive and starts the job; its id. `packages` are installed for it, by pip."""
    runtime_env: dict[str, Any] = {"working_dir": str(archive), "env_vars": {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}}
    if packages:
        runtime_env["pip"] = {"packages": packages, "pip_check": False}
    memory = options.entrypoint_memory
    try:
        return client.submit_job(
            entrypoint=entrypoint,
            submission_id=submission_id,
            runtime_env=runtime_env,
            metadata=metadata,
            entrypoint_num_cpus=options.entrypoint_cpus,
            entrypoint_num_gpus=options.entrypoint_gpus,
            entrypoint_memory=None if memory is None else int(memory * 2**30),
            entrypoint_label_selector=as_pairs(options.entrypoint_label) or None,
        )
    except _failures() as error:
        raise RunError(f"The cluster did not take the job: {_sentence(error)}.") from error


def follow(client: Client, job_id: str, write: Callable[[str], object]) -> Job:
    """Writes what the job prints until it ends; how it ended. A lost connection is made again, five times."""
    seen, lost = 0, 0
    while True:
        position = 0

        def show(text: str) -> None:
            nonlocal seen, position
            # A new connection tells everything again from the start.
            fresh = text[max(seen - position, 0) :]
            position += len(text)
            seen = max(seen, position)
            if fresh:
                write(fresh)

        try:
            asyncio.run(_tail(client, job_id, show))
            job = job_of(client, job_id)
            if job.has_ended:
                return job
        except _failures() as error:
            lost += 1
            if lost > RECONNECTS:
                raise RunError(
                    f"The connection to the cluster was lost {lost} times ({_sentence(error)}), and job {job_id} may "
                    f"still run; `genrec jobs logs {job_id}` follows it again."
                ) from error
        time.sleep(RECONNECT_S)


async def _tail(client: Client, job_id: str, show: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(job_id):
        show(text)


def job_of(client: Client, job_id: str) -> Job:
    """The job with this id; raises ConfigError when the cluster has none."""
    _check_id(job_id)
    try:
        return _job(client.get_job_info(job_id))
    except _failures() as error:
        raise _unknown(job_id, error) from error


def jobs_of(client: Client) -> list[Job]:
    """All jobs that were submitted, the newest first."""
    try:
        listed = client.list_jobs()
    except _failures() as error:
        raise RunError(f"The cluster did not list its jobs: {_sentence(error)}.") from error
    jobs = [_job(details) for details in listed if details.submission_id]
    return sorted(jobs, key=lambda job: job.started_s or 0.0, reverse=True)


def logs_of(client: Client, job_id: str) -> str:
    """What the job has printed so far."""
    _check_id(job_id)
    try:
        return client.get_job_logs(job_id)
    except _failures() as error:
        raise _unknown(job_id, error) from error


def stop(client: Client, job_id: str) -> Job:
    """Asks the job to end, and waits for that; a job that has ended already stays what it was."""
    _check_id(job_id)
    try:
        client.stop_job(job_id)
    except _failures() as error:
        raise _unknown(job_id, error) from error
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not (job := job_of(client, job_id)).has_ended:
        if time.monotonic() > deadline:
            raise RunError(f"Job {job_id} did not stop within {STOP_TIMEOUT_S:.0f} s; ask again, or look at its logs.")
        time.sleep(0.5)
    return job


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    status = getattr(details.status, "value", details.status)
    return Job(
        id=str(details.submission_id or details.job_id),
        status=str(status),
        command=str(details.entrypoint),
        run=metadata.get("run"),
        commit=metadata.get("commit"),
        genrec_version=metadata.get("genrec_version"),
        started_s=None if not details.start_time else details.start_time / 1000,
        ended_s=None if not details.end_time else details.end_time / 1000,
        message=str(details.message or "").partition(", last available logs")[0],  # the logs are shown already
        exit_code=details.driver_exit_code,
    )


@contextmanager
def _only_address(address: str) -> Iterator[None]:
    """Ray's client prefers these variables to the address that it is given."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _failures() -> tuple[type[Exception], ...]:
    """What Ray's client raises when a cluster refuses or is gone; most of it is imported with Ray only."""
    from aiohttp import ClientError
    from ray.exceptions import AuthenticationError

    return RuntimeError, OSError, ClientError, AuthenticationError


def _check_id(job_id: str) -> None:
    """Raises ConfigError for an id that leads to another page of the dashboard: Ray's client puts it into a URL."""
    if job_id in (".", "..") or re.fullmatch(r"[^/?#%\s\\]+", job_id) is None:
        raise _no_job(job_id)


def _no_job(job_id: str) -> ConfigError:
    return ConfigError(f"The cluster has no job {job_id!r}; `genrec jobs list` names those that it has.")


def _unknown(job_id: str, error: Exception) -> ConfigError | RunError:
    text = str(error)
    if "404" in text or "does not exist" in text:
        return _no_job(job_id)
    return RunError(f"The cluster did not answer about job {job_id}: {_sentence(error)}.")


def _sentence(error: Exception) -> str:
    """The first line of an error, without Ray's stack traces."""
    text = re.sub(r"\s+", " ", str(error).split("Traceback")[0]).strip().rstrip(".:")
    return text[:300] or type(error).__name__
