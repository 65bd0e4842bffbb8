"""Every setting of genrec, typed, frozen and checked before any process starts.

Precedence: defaults < YAML file < `section.field=value` on the command line. A config holds values only; a section with
a `name` selects one of several kinds, each with its own fields. `load_config` turns whatever is wrong into one
`ConfigError` that says the key path, the value, the rule and the way out.

`data.` settings decide the prepared data set; `sequence.` and `batch.` decide which windows make a step; neither
depends on how many workers there are.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

# The `data.` sections live in a file of their own and are offered here with the others.
from genrec.config_data import ColumnsConfig as ColumnsConfig
from genrec.config_data import CsvSource as CsvSource
from genrec.config_data import DataConfig as DataConfig
from genrec.config_data import GlobalTimeSplit as GlobalTimeSplit
from genrec.config_data import LeaveOneOutSplit as LeaveOneOutSplit
from genrec.config_data import MixtureSource as MixtureSource
from genrec.config_data import MovieLensSource as MovieLensSource
from genrec.config_data import ParquetSource as ParquetSource
from genrec.config_data import RecBoleSource as RecBoleSource
from genrec.config_data import Section as Section
from genrec.config_data import SequenceTextSource as SequenceTextSource
from genrec.config_data import Source as Source
from genrec.config_data import Split as Split
from genrec.config_data import SyntheticSource as SyntheticSource
from genrec.config_data import kind_by_default
from genrec.config_errors import explain_validation_error, read_yaml
from genrec.errors import ConfigError
from genrec.overrides import apply_overrides

RUN_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class SequenceConfig(Section):
    """How a user's events become training windows."""

    max_length: int = Field(50, ge=2, le=16_384, description="input events in a window")
    window: Literal["last", "random", "sliding", "stochastic"] = Field(
        "last",
        description="of a longer history: its last events, a stretch, all in several windows, or stochastic length",
    )
    stride: int | None = Field(
        None, ge=1, description="sliding: events between the ends of two windows; null is max_length"
    )
    alpha: float = Field(
        1.6, gt=0, le=2, description="stochastic: longer windows than max_length^(alpha/2) are mostly cut to that"
    )
    target_actions: tuple[str, ...] | None = Field(
        None, min_length=1, description="actions that are predicted, in training and evaluation; null is every action"
    )
    mix: dict[str, float] | None = Field(
        None, description="shares of the set's parts in an epoch, by name; null takes every window once"
    )

    @model_validator(mode="after")
    def _fits_the_window(self) -> "SequenceConfig":
        if self.stride is not None and (self.window != "sliding" or self.stride > self.max_length):
            raise ValueError(
                f"stride ({self.stride}) is for window: sliding, and at most max_length ({self.max_length}), with "
                f"window: {self.window}; leave it out, or use window: sliding and a stride up to {self.max_length}"
            )
        return self

    @model_validator(mode="after")
    def _shares(self) -> "SequenceConfig":
        if self.mix is not None and (any(share < 0 for share in self.mix.values()) or not sum(self.mix.values())):
            raise ValueError(f"mix {self.mix} must have shares of 0 or more, and one above 0; mend the odd one")
        return self


class BatchConfig(Section):
    """The global step, whatever the number of workers."""

    tokens_per_step: int = Field(8_192, ge=2, description="events in one optimizer step, at most, over all workers")
    micro_batches_per_step: int = Field(
        2, ge=1, le=65_536, description="parts of a step; a multiple of cluster.workers"
    )
    chunk_tokens: int = Field(
        1_000_000, ge=2, description="events that are read and shuffled together; at least those of 32 steps"
    )
    steps_per_block: int = Field(
        16, ge=1, le=1_024, description="steps handed to a worker at a time; more where they are small"
    )

    @model_validator(mode="after")
    def _tokens(self) -> "BatchConfig":
        if self.tokens_per_step < self.micro_batches_per_step * 2:
            raise ValueError(
                f"tokens_per_step ({self.tokens_per_step}) must be at least 2 for each of the "
                f"{self.micro_batches_per_step} micro-batches; raise it to {2 * self.micro_batches_per_step} or more"
            )
        return self


class SASRecConfig(Section):
    """Self-attentive sequential recommendation, pre-norm (Kang and McAuley, 2018)."""

    name: Literal["sasrec"]
    dim: int = Field(64, ge=1, description="width of item and hidden vectors")
    num_layers: int = Field(2, ge=1, description="transformer blocks")
    num_heads: int = Field(2, ge=1, description="attention heads; must divide dim")
    feed_forward_dim: int | None = Field(None, ge=1, description="width inside the feed-forward part; null is dim")
    activation: Literal["relu", "gelu"] = Field("relu", description="non-linearity of the feed-forward part")
    dropout: float = Field(0.2, ge=0, lt=1, description="on embeddings, attention weights and feed-forward")
    l2_normalize: bool = Field(False, description="cosine scores: outputs and items have length 1")

    @model_validator(mode="after")
    def _heads(self) -> "SASRecConfig":
        if self.dim % self.num_heads:
            raise ValueError(
                f"dim ({self.dim}) must be divisible by num_heads ({self.num_heads}); "
                f"use dim {(self.dim // self.num_heads + 1) * self.num_heads} or num_heads 1"
            )
        return self


class HSTUConfig(Section):
    """Hierarchical sequential transduction units (Zhai et al., 2024)."""

    name: Literal["hstu"]
    dim: int = Field(50, ge=1, description="width of item and hidden vectors")
    num_layers: int = Field(2, ge=1, description="HSTU layers")
    num_heads: int = Field(1, ge=1, description="attention heads")
    query_dim: int = Field(50, ge=1, description="width of queries and keys of one head")
    value_dim: int = Field(50, ge=1, description="width of values and gates of one head")
    dropout: float = Field(0.2, ge=0, lt=1, description="on embeddings and before each output projection")
    position_bias: bool = Field(True, description="relative-position bias inside attention")
    time_bias: bool = Field(True, description="time-gap bias inside attention; sees the query time")
    l2_normalize: bool = Field(True, description="cosine scores: outputs and items have length 1")


class InputsConfig(Section):
    """What the model sees of an event besides its item."""

    actions: bool = Field(False, description="a learned vector for the action (stream, skip, ...)")
    item_types: bool = Field(False, description="a learned vector for the item's type (track, episode, ...)")
    time_features: tuple[Literal["gap", "hour", "weekday"], ...] = Field(
        (), description="learned vectors: time since the event before, hour and weekday (UTC)"
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs that are on, for protocol cards and messages."""
        chosen = {"actions": self.actions, "item_types": self.item_types}
        return (*(name for name, on in chosen.items() if on), *self.time_features)


Model = Annotated[SASRecConfig | HSTUConfig, Field(discriminator="name")]


class FullSoftmaxConfig(Section):
    """Cross entropy over the whole catalogue, in chunks."""

    name: Literal["full-softmax"]
    temperature: float = Field(1.0, gt=0, description="scores are divided by it")
    max_logits_bytes: int = Field(64 * 2**20, ge=2**16, description="logits held at any time, in bytes")


class SampledSoftmaxConfig(Section):
    """Cross entropy over the target and negatives that the whole micro-batch shares."""

    name: Literal["sampled-softmax"]
    temperature: float = Field(1.0, gt=0, description="scores are divided by it")
    num_negatives: int = Field(256, ge=1, description="uniform negatives, shared by a micro-batch")
    max_logits_bytes: int = Field(64 * 2**20, ge=2**16, description="logits held at any time, in bytes")

    @model_validator(mode="after")
    def _one_row(self) -> "SampledSoftmaxConfig":
        if 4 * self.num_negatives > self.max_logits_bytes:
            raise ValueError(
                f"max_logits_bytes ({self.max_logits_bytes}) must hold one row of num_negatives "
                f"({self.num_negatives}) fp32 logits; raise it to {4 * self.num_negatives} or more"
            )
        return self


Loss = Annotated[FullSoftmaxConfig | SampledSoftmaxConfig, Field(discriminator="name")]


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.98, ge=0, lt=1, description="decay of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    gradient_clipping: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    min_lr_fraction: float = Field(0.0, ge=0, le=1, description="where linear and cosine end, as a fraction of lr")


class DeepSpeedConfig(Section):
    """DeepSpeed: ZeRO shards optimizer state (1), gradients (2) and weights (3) over the workers."""

    name: Literal["deepspeed"] = "deepspeed"
    zero_stage: int = Field(2, ge=0, le=3, description="0, 1, 2 or 3")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 keeps fp32 master weights")
    offload_optimizer: bool = Field(False, description="optimizer state in host memory (stage 1 to 3, GPU only)")

    @model_validator(mode="after")
    def _offload(self) -> "DeepSpeedConfig":
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3, not 0; raise zero_stage")
        return self


class TorchConfig(Section):
    """Plain PyTorch: every worker holds everything. The reference that ZeRO is tested against."""

    name: Literal["torch"]
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 is autocast over fp32 weights")


Engine = Annotated[DeepSpeedConfig | TorchConfig, Field(discriminator="name"), kind_by_default("deepspeed")]


class TrainConfig(Section):
    """How long to train, and when to look."""

    max_epochs: int | None = Field(None, ge=1, description="passes over the data; null leaves it to max_steps")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; null leaves it to max_epochs")
    evaluate_every_epochs: int = Field(1, ge=1, description="epochs between two validations")
    checkpoint_every_steps: int | None = Field(
        None, ge=1, description="steps between two checkpoints; null is at each validation"
    )
    patience: int | None = Field(None, ge=1, description="validations without a better metric before training stops")
    log_every_steps: int = Field(10, ge=1, description="steps between two metric lines")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_best: int = Field(
        0,
        ge=0,
        description="checkpoints with the best validation metric that are kept besides; each validation saves one",
    )
    start_from: str | None = Field(
        None, description="export folder or run whose weights a new run begins with; items are matched by their ids"
    )
    log_windows: bool = Field(False, description="write the windows of every trained step to windows/ in the run")

    @model_validator(mode="after")
    def _length(self) -> "TrainConfig":
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("one of max_epochs and max_steps must be set; add train.max_epochs=10, say")
        return self


class EvaluationConfig(Section):
    """Full-catalogue evaluation."""

    ks: tuple[int, ...] = Field((1, 5, 10, 50), min_length=1, description="cut-offs of HR, NDCG and MRR")
    metric: str = Field("ndcg@10", pattern=r"^(hr|ndcg|mrr)@\d+$", description="what validation maximises")
    filter_seen: bool = Field(True, description="items of the user's history are not ranked")
    users_per_batch: int = Field(512, ge=1, description="users scored at a time by one worker")
    max_validation_users: int | None = Field(None, ge=1, description="validate on a seeded sample; null is everyone")
    max_scores_bytes: int = Field(32 * 2**20, ge=2**12, description="scores held at any time by one worker, in bytes")
    shard_table_bytes: int = Field(
        2**30,
        ge=0,
        description="an item table of at least this many bytes is shared out by rows over the workers of the final "
        "evaluation",
    )

    @model_validator(mode="after")
    def _ks(self) -> "EvaluationConfig":
        if any(k < 1 for k in self.ks) or len(set(self.ks)) != len(self.ks):
            raise ValueError(f"ks {list(self.ks)} must be different positive integers; remove the odd one")
        if int(self.metric.partition("@")[2]) not in self.ks:
            raise ValueError(f"metric {self.metric!r} needs its cut-off in ks {list(self.ks)}; add it")
        return self

    @model_validator(mode="after")
    def _scores(self) -> "EvaluationConfig":
        least = 8 * self.users_per_batch**2
        if self.max_scores_bytes < least:
            raise ValueError(
                f"max_scores_bytes ({self.max_scores_bytes}) must be at least 8 * users_per_batch^2 ({least}); raise "
                f"it, or lower users_per_batch ({self.users_per_batch})"
            )
        return self


class ClusterConfig(Section):
    """The workers that share the training."""

    workers: int = Field(1, ge=1, le=65_536, description="Ray Train workers")
    cpus_per_worker: float = Field(0.5, gt=0, description="logical CPUs reserved for a worker; leave some for Ray Data")
    gpus_per_worker: float = Field(0.0, ge=0, le=1, description="1 trains on GPUs, 0 on CPUs")
    threads_per_worker: int | None = Field(None, ge=1, description="torch threads of a worker; null shares the cores")
    max_failures: int = Field(3, ge=0, description="restarts from the last checkpoint after a worker dies")
    max_preemptions: int = Field(
        -1, ge=-1, description="times a run may be told to leave its machines and go on elsewhere; -1 is no limit"
    )
    collective_timeout_s: int = Field(600, ge=10, description="a collective that takes longer ends the run")


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


class TrackingConfig(Section):
    """Where metrics go besides the run directory."""

    wandb: bool = Field(False, description="log to Weights & Biases; without a key it logs offline")
    wandb_project: str = Field("genrec", description="project on Weights & Biases")


class ExperimentConfig(Section):
    """One experiment: a data set, a model and how to train it."""

    name: str = Field(pattern=RUN_NAME_PATTERN, description="run name: letters, digits, dot, dash and underscore")
    seed: int = Field(1, ge=0, lt=2**31, description="decides weights, order, dropout and negatives")
    runs_dir: str = Field("runs", description="folder that holds the run directories")
    data: DataConfig = Field(description="from logs to a prepared data set")
    sequence: SequenceConfig = Field(SequenceConfig(), description="how events become windows")
    batch: BatchConfig = Field(BatchConfig(), description="what a step is made of")
    inputs: InputsConfig = Field(InputsConfig(), description="what the model sees of an event besides its item")
    model: Model = Field(description="the network")
    loss: Loss = Field(description="the training objective")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="AdamW and its schedule")
    engine: Engine = Field(DeepSpeedConfig(), description="how a step is executed")
    train: TrainConfig = Field(description="how long to train")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="full-catalogue evaluation")
    cluster: ClusterConfig = Field(ClusterConfig(), description="the workers")
    faults: FaultsConfig = Field(FaultsConfig(), description="poisoned steps and hangs")
    tracking: TrackingConfig = Field(TrackingConfig(), description="metrics elsewhere")

    @model_validator(mode="after")
    def _divides(self) -> "ExperimentConfig":
        parts, workers = self.batch.micro_batches_per_step, self.cluster.workers
        if parts % workers:
            raise ValueError(
                f"batch.micro_batches_per_step ({parts}) must be a multiple of cluster.workers ({workers}); "
                f"use {(parts // workers + 1) * workers} micro-batches or a number of workers that divides {parts}"
            )
        return self

    @property
    def accumulation(self) -> int:
        """Micro-batches that one worker adds up before a step."""
        return self.batch.micro_batches_per_step // self.cluster.workers


def config_from_dict(values: dict[str, Any], origin: str = "config") -> ExperimentConfig:
    """The checked config; raises ConfigError with every problem, each with its path, value and rule."""
    return explain_validation_error(ExperimentConfig, values, origin)


def load_config(path: str | Path, overrides: list[str] | None = None) -> ExperimentConfig:
    """The checked config of a YAML file with `section.field=value` overrides on top."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold `section:` entries, but it holds {type(values).__name__}; see configs/quickstart.yaml."
        )
    return config_from_dict(apply_overrides(values, overrides or []), str(path))
