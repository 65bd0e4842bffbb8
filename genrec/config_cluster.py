"""The `cluster.`, `placement.` and `faults.` sections: where a run trains, and what it does when that goes wrong."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from genrec.config_data import Section
from genrec.config_workers import Workers, check_countable, checked_workers


class ClusterConfig(Section):
    """The workers that share the training."""

    workers: Workers = Field(
        1, description="Ray Train workers; [min, max] is as many of them as the cluster has room for"
    )
    resize_check_s: float = Field(
        60, ge=1, description="seconds between two looks for more room, where workers is a range"
    )
    cpus_per_worker: float = Field(0.5, gt=0, description="logical CPUs reserved for a worker; leave some for Ray Data")
    gpus_per_worker: float = Field(0.0, ge=0, le=1, description="1 trains on GPUs, 0 on CPUs")
    validation_cpus: float = Field(0.5, gt=0, description="logical CPUs of a background validation")
    validation_gpus: float = Field(0.0, ge=0, le=1, description="GPUs of a background validation")
    threads_per_worker: int | None = Field(None, ge=1, description="torch threads of a worker; null shares the cores")
    max_failures: int = Field(3, ge=0, description="restarts from the last checkpoint after a worker dies")
    max_preemptions: int = Field(
        -1, ge=-1, description="times a run may be told to leave its machines and go on elsewhere; -1 is no limit"
    )
    collective_timeout_s: int = Field(
        3_600,
        ge=10,
        description="a collective that takes longer ends the run; the others wait in one while worker 0 reads a "
        "checkpoint, exports or stores",
    )

    @field_validator("workers", mode="before")
    @classmethod
    def _workers(cls, value: Any) -> Workers:
        return checked_workers(value)

    @model_validator(mode="after")
    def _whole_gpus(self) -> "ClusterConfig":
        if self.max_workers > 1 and self.gpus_per_worker not in (0, 1):
            raise ValueError(
                f"gpus_per_worker ({self.gpus_per_worker:g}) must be 0 or 1 with workers ({self.max_workers}): workers "
                "of one run cannot share a GPU; runs of one worker each can"
            )
        return self

    @model_validator(mode="after")
    def _countable(self) -> "ClusterConfig":
        check_countable(
            self.workers, {"cpus_per_worker": self.cpus_per_worker, "gpus_per_worker": self.gpus_per_worker}
        )
        return self

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run goes on with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that the run takes."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class PlacementConfig(Section):
    """Which machines do what: labels are those of `ray start --labels`, of a worker group or of a node type."""

    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="workers on few machines or on many; STRICT: all on one, each on its own, or not at all"
    )
    worker_labels: dict[str, str] | None = Field(None, description="labels of the machines that train; null is any")
    data_labels: dict[str, str] | None = Field(None, description="labels of the machines that read data; null is any")
    wait_s: float = Field(
        0, ge=0, description="seconds that a start waits for the machines of all workers, of a range the fewest"
    )


class FaultsConfig(Section):
    """What a run does about steps that cannot be right, and about workers that stand still."""

    on_poisoned_step: Literal["stop", "skip", "rewind"] = Field(
        "stop",
        description="after NaN, Inf or an exploding gradient: end; go on without it; or go back to the last checkpoint "
        "and leave it out",
    )
    max_poisoned_steps: int = Field(10, ge=1, description="skip and rewind: poisoned steps before the run stops")
    max_gradient_norm_ratio: float | None = Field(
        None, gt=1, description="a gradient norm this many times its running median poisons a step; null is never"
    )
    step_timeout_s: float | None = Field(
        600, gt=0, description="a worker without a finished micro-batch for this long is ended; null waits for ever"
    )
    pause_timeout_s: float = Field(
        3_600, gt=0, description="the same limit for the first micro-batch, a validation and a checkpoint"
    )
