"""Every setting of genrec, typed, frozen and checked before any process starts.

Precedence: defaults < YAML file < `section.field=value` on the command line. A config holds values only; a section with
a `name` selects one of several kinds, each with its own fields. `load_config` turns whatever is wrong into one
`ConfigError` that says the key path, the value, the rule and the way out.

`data.` settings decide the prepared data set; `sequence.` and `batch.` decide which windows make a step; neither
depends on how many workers there are.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from genrec.config_errors import explain_validation_error, read_yaml
from genrec.errors import ConfigError
from genrec.overrides import apply_overrides

RUN_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen, types are not guessed across kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        # Python counts true as 1; whoever writes `patience: true` means something else.
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and key in cls.model_fields and cls.model_fields[key].annotation is not bool:
                raise ValueError(f"{key} must not be {str(value).lower()}; give a number, a text or null")
        return values


def _kind_by_default(name: str) -> BeforeValidator:
    """Lets a section leave out `name` when one kind is the usual one."""
    return BeforeValidator(lambda value: {"name": name, **value} if isinstance(value, dict) else value)


class ColumnsConfig(Section):
    """Names of the log's columns."""

    user: str = Field("user", description="column with the user id (integers or strings)")
    item: str = Field("item", description="column with the item id (integers or strings)")
    time: str = Field("time", description="column with the event time (integer or timestamp)")
    action: str | None = Field(None, description="column with the action (stream, skip, save, ...)")
    value: str | None = Field(None, description="column with a number (seconds played, rating)")
    time_unit: Literal["s", "ms", "us"] = Field("s", description="what an integer time counts: s, ms or us since 1970")


class ParquetSource(Section):
    """A Parquet log: one file or a folder of shards, on any file system that pyarrow reads."""

    name: Literal["parquet"]
    path: str = Field(description="file or folder; $VARIABLES are expanded")
    columns: ColumnsConfig = Field(ColumnsConfig(), description="names of the log's columns")
    items_path: str | None = Field(None, description="item table (Parquet): item, and any of type, title")


class CsvSource(Section):
    """A CSV log: one file or a folder of shards, with a header line; `.gz` is read as it is."""

    name: Literal["csv"]
    path: str = Field(description="file or folder; $VARIABLES are expanded")
    columns: ColumnsConfig = Field(ColumnsConfig(), description="names of the log's columns")
    delimiter: str = Field(",", min_length=1, max_length=1, description="the character between two fields")
    items_path: str | None = Field(None, description="item table (Parquet): item, and any of type, title")


class RecBoleSource(Section):
    """RecBole atomic files: a tab-separated `.inter` file with a typed header (`user_id:token`, ...)."""

    name: Literal["recbole"]
    path: str = Field(description="the .inter file, or the folder that holds one; `.gz` is read as it is")


class SequenceTextSource(Section):
    """Text whose order is the time order and is kept: `user item` a line, or `user item item ...` a line."""

    name: Literal["sequence-text"]
    path: str = Field(description="the text file; `.gz` is read as it is")
    layout: Literal["pairs", "lists"] = Field(description="pairs: `user item` a line; lists: `user item item ...`")


class MovieLensSource(Section):
    """MovieLens in its original release format: a folder, a zip file, or a download checked against its checksum."""

    name: Literal["ml-100k", "ml-1m", "ml-20m"]
    path: str | None = Field(None, description="release folder or zip file; null downloads it")
    url: str | None = Field(None, description="where to download the zip from; null is GroupLens")
    checksum: str | None = Field(None, description="`md5:...` or `sha256:...` of the zip; null is the published one")
    download_dir: str = Field("prepared/downloads", description="where a download is kept")


class SyntheticSource(Section):
    """A seeded listening log whose best reachable hit rate is known (docs/synthetic.md)."""

    name: Literal["synthetic"]
    num_events: int = Field(200_000, ge=10_000, le=2_000_000_000, description="events in the log, about")
    num_users: int | None = Field(None, ge=10, description="users; null is one for every 50 events")
    num_items: int = Field(2_000, ge=100, description="items: tracks, episodes, audiobooks and videos")
    seed: int = Field(1, ge=0, description="seed of the log; the training seed does not touch it")

    @model_validator(mode="after")
    def _history_length(self) -> "SyntheticSource":
        events_per_user = self.num_events / self.users
        if not 5 <= events_per_user <= 4_000:
            raise ValueError(
                f"num_events ({self.num_events}) / num_users ({self.users}) must be 5 to 4000 events a user, not "
                f"{events_per_user:.1f}; use {max(10, self.num_events // 50)} users, or leave num_users out"
            )
        return self

    @property
    def users(self) -> int:
        """Users in the log: `num_users`, or one for every 50 events."""
        return self.num_users if self.num_users is not None else self.num_events // 50


Source = Annotated[
    ParquetSource | CsvSource | RecBoleSource | SequenceTextSource | MovieLensSource | SyntheticSource,
    Field(discriminator="name"),
]


class LeaveOneOutSplit(Section):
    """Each user's last event is test, the one before it is validation, the rest is training."""

    name: Literal["leave-one-out"] = "leave-one-out"


class GlobalTimeSplit(Section):
    """Wall time cuts the log: training before `validation_from`, validation up to `test_from`, test after it."""

    name: Literal["global-time"]
    validation_from: int = Field(description="first second (unix time of the log) of the validation period")
    test_from: int = Field(description="first second (unix time of the log) of the test period")

    @model_validator(mode="after")
    def _ordered(self) -> "GlobalTimeSplit":
        if self.validation_from >= self.test_from:
            raise ValueError(
                f"validation_from ({self.validation_from}) must be before test_from ({self.test_from}); swap them"
            )
        return self


Split = Annotated[LeaveOneOutSplit | GlobalTimeSplit, Field(discriminator="name"), _kind_by_default("leave-one-out")]


class DataConfig(Section):
    """From logs to a prepared data set."""

    source: Source = Field(description="where the events come from")
    prepared: str = Field(description="folder of the prepared data set; made by `genrec prepare`")
    split: Split = Field(LeaveOneOutSplit(), description="what is held out")
    min_user_events: int = Field(1, ge=1, description="users with fewer events are dropped (k-core, iterated)")
    min_item_events: int = Field(1, ge=1, description="items with fewer events are dropped (k-core, iterated)")
    min_value: float | None = Field(None, description="events with a smaller value are dropped; null keeps all")
    max_rejected_fraction: float = Field(0.01, ge=0, le=1, description="more bad rows than this fail the job")
    num_shards: int | None = Field(None, ge=1, le=65_536, description="sequence files; null picks by the log's size")


class SequenceConfig(Section):
    """How a user's events become a training window."""

    max_length: int = Field(50, ge=2, le=16_384, description="input events in a window")
    window: Literal["last", "random"] = Field("last", description="of a longer history: its last events, or a stretch")


class BatchConfig(Section):
    """The global step, whatever the number of workers."""

    tokens_per_step: int = Field(8_192, ge=2, description="events in one optimizer step, at most, over all workers")
    micro_batches_per_step: int = Field(
        2, ge=1, le=65_536, description="parts of a step; a multiple of cluster.workers"
    )
    chunk_tokens: int = Field(1_000_000, ge=2, description="events that are read and shuffled together")
    steps_per_block: int = Field(16, ge=1, le=1_024, description="steps handed to a worker at a time")

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


Engine = Annotated[DeepSpeedConfig | TorchConfig, Field(discriminator="name"), _kind_by_default("deepspeed")]


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

    @model_validator(mode="after")
    def _ks(self) -> "EvaluationConfig":
        if any(k < 1 for k in self.ks) or len(set(self.ks)) != len(self.ks):
            raise ValueError(f"ks {list(self.ks)} must be different positive integers; remove the odd one")
        if int(self.metric.partition("@")[2]) not in self.ks:
            raise ValueError(f"metric {self.metric!r} needs its cut-off in ks {list(self.ks)}; add it")
        return self


class ClusterConfig(Section):
    """The workers that share the training."""

    workers: int = Field(1, ge=1, le=65_536, description="Ray Train workers")
    cpus_per_worker: float = Field(0.5, gt=0, description="logical CPUs reserved for a worker; leave some for Ray Data")
    gpus_per_worker: float = Field(0.0, ge=0, le=1, description="1 trains on GPUs, 0 on CPUs")
    threads_per_worker: int | None = Field(None, ge=1, description="torch threads of a worker; null shares the cores")
    max_failures: int = Field(3, ge=0, description="restarts from the last checkpoint after a worker dies")
    collective_timeout_s: int = Field(600, ge=10, description="a collective that takes longer ends the run")


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
    model: Model = Field(description="the network")
    loss: Loss = Field(description="the training objective")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="AdamW and its schedule")
    engine: Engine = Field(DeepSpeedConfig(), description="how a step is executed")
    train: TrainConfig = Field(description="how long to train")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="full-catalogue evaluation")
    cluster: ClusterConfig = Field(ClusterConfig(), description="the workers")
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
