"""Every setting of genrec, typed, frozen and checked before any process starts.

Precedence: defaults < YAML file < `section.field=value` on the command line. A config holds values only; a section with
a `name` selects one of several kinds, each with its own fields. `load_config` turns whatever is wrong into one
`ConfigError` that says the key path, the value, the rule and the way out.

`data.` settings decide the prepared data set; `sequence.` and `batch.` decide which windows make a step; neither
depends on how many workers there are.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

# Sections that live in files of their own and are offered here with the others.
from genrec.config_cluster import ClusterConfig as ClusterConfig
from genrec.config_cluster import FaultsConfig as FaultsConfig
from genrec.config_cluster import PlacementConfig as PlacementConfig
from genrec.config_data import ColumnsConfig as ColumnsConfig
from genrec.config_data import CsvSource as CsvSource
from genrec.config_data import DataConfig as DataConfig
from genrec.config_data import GlobalTimeSplit as GlobalTimeSplit
from genrec.config_data import ItemVectorsConfig as ItemVectorsConfig
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
from genrec.config_engine import AutoConfig as AutoConfig
from genrec.config_engine import DeepSpeedConfig as DeepSpeedConfig
from genrec.config_engine import Engine as Engine
from genrec.config_engine import EngineSection as EngineSection
from genrec.config_engine import TorchConfig as TorchConfig
from genrec.config_errors import explain_validation_error, read_yaml
from genrec.config_heads import ActionHeadConfig as ActionHeadConfig
from genrec.config_heads import DwellHeadConfig as DwellHeadConfig
from genrec.config_heads import HeadsConfig as HeadsConfig
from genrec.config_losses import LEARNED_TEMPERATURES as LEARNED_TEMPERATURES
from genrec.config_losses import BCEConfig as BCEConfig
from genrec.config_losses import FullSoftmaxConfig as FullSoftmaxConfig
from genrec.config_losses import GBCEConfig as GBCEConfig
from genrec.config_losses import Loss as Loss
from genrec.config_losses import LossSection as LossSection
from genrec.config_losses import SampledSoftmaxConfig as SampledSoftmaxConfig
from genrec.config_models import CODE_MODELS, CodeDecoderConfig, Model
from genrec.config_optimizer import AdamWConfig as AdamWConfig
from genrec.config_optimizer import MuonConfig as MuonConfig
from genrec.config_optimizer import Optimizer as Optimizer
from genrec.config_optimizer import OptimizerConfig as OptimizerConfig
from genrec.config_optimizer import RowwiseAdagradConfig as RowwiseAdagradConfig
from genrec.config_secrets import check_no_secrets
from genrec.config_semantic import ExportVectors as ExportVectors
from genrec.config_semantic import FSQTokenizer as FSQTokenizer
from genrec.config_semantic import HealthConfig as HealthConfig
from genrec.config_semantic import ItemVectorsOfSet as ItemVectorsOfSet
from genrec.config_semantic import PublishedTokenizer as PublishedTokenizer
from genrec.config_semantic import RKMeansTokenizer as RKMeansTokenizer
from genrec.config_semantic import RQVAETokenizer as RQVAETokenizer
from genrec.config_semantic import SemanticIdsConfig as SemanticIdsConfig
from genrec.config_semantic import TextVectors as TextVectors
from genrec.config_semantic import TfidfVectors as TfidfVectors
from genrec.config_semantic import VectorFile as VectorFile
from genrec.config_sequences import BatchConfig as BatchConfig
from genrec.config_sequences import InputsConfig as InputsConfig
from genrec.config_sequences import ItemVectorInputs as ItemVectorInputs
from genrec.config_sequences import SequenceConfig as SequenceConfig
from genrec.config_workers import check_shares
from genrec.data.schema import Role
from genrec.errors import ConfigError
from genrec.overrides import apply_overrides

RUN_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class TrainConfig(Section):
    """How long to train, and when to look."""

    max_epochs: int | None = Field(None, ge=1, description="passes over the data; null leaves it to max_steps")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; null leaves it to max_epochs")
    min_steps: int | None = Field(
        None,
        ge=1,
        description="where max_epochs are fewer steps, as on a small set, passes go on until so many are done, or "
        "patience ends",
    )
    evaluate_every_epochs: int = Field(1, ge=1, description="epochs between two validations")
    checkpoint_every_steps: int | None = Field(
        None, ge=1, description="steps between two checkpoints; null is at each validation"
    )
    patience: int | None = Field(None, ge=1, description="validations without a better metric before training stops")
    log_every_steps: int = Field(10, ge=1, description="steps between two metric lines")
    checkpoint_dir: str | None = Field(
        None,
        description="folder or URI (s3://bucket/prefix) that holds a folder for each run; null is the run directory",
    )
    checkpoint_upload: Literal["async", "sync"] = Field(
        "async", description="async: training goes on while a checkpoint is uploaded; the next one waits for it"
    )
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_best: int = Field(
        0,
        ge=0,
        description="checkpoints with the best validation metric that are kept besides; each validation saves one",
    )
    start_from: str | None = Field(
        None, description="export folder or run whose weights a new run begins with; items are matched by their ids"
    )

    @model_validator(mode="after")
    def _length(self) -> "TrainConfig":
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("one of max_epochs and max_steps must be set; add train.max_epochs=10, say")
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> "TrainConfig":
        check_no_secrets("checkpoint_dir", self.checkpoint_dir)
        return self


class EvaluationConfig(Section):
    """Full-catalogue evaluation."""

    ks: tuple[int, ...] = Field((1, 5, 10, 50), min_length=1, description="cut-offs of HR, NDCG and MRR")
    metric: str = Field("ndcg@10", pattern=r"^(hr|ndcg|mrr)@\d+$", description="what validation maximises")
    filter_seen: bool = Field(True, description="items of the user's history are not ranked")
    users_per_batch: int = Field(512, ge=1, description="users scored at a time by one worker")
    max_validation_users: int | None = Field(None, ge=1, description="validate on a seeded sample; null is everyone")
    validation: Literal["inline", "background"] = Field(
        "inline", description="inline: the workers stop and validate; background: a Ray task does, from a checkpoint"
    )
    validation_timeout_s: float = Field(
        3_600, gt=0, description="background: a validation that takes longer is given up"
    )
    max_waiting_validations: int = Field(
        8, ge=1, description="background: validations that may wait; a further one is left out, with a warning"
    )
    max_scores_bytes: int = Field(32 * 2**20, ge=2**12, description="scores held at any time by one worker, in bytes")
    decoding: Literal["beam", "exhaustive"] = Field(
        "beam", description="models that write codes: beam search, or every item's codes are scored (slow, exact)"
    )
    beam_width: int = Field(
        50, ge=1, description="models that write codes: beams of a user; as many as the largest k, where that is more"
    )
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


class TrackingConfig(Section):
    """Where metrics go besides the run directory."""

    wandb: bool = Field(False, description="log to Weights & Biases; without a key it logs offline")
    wandb_project: str = Field("genrec", description="project on Weights & Biases")
    log_format: Literal["text", "json"] = Field(
        "text", description="lines of log.txt and of the workers' logs; json names run, rank and step in each"
    )
    wandb_group: str | None = Field(None, description="group of runs there; the trials of a sweep are one")
    log_windows: bool = Field(False, description="write the windows of every trained step to windows/ in the run")


class ExperimentConfig(Section):
    """One experiment: a data set, a model and how to train it."""

    name: str = Field(pattern=RUN_NAME_PATTERN, description="run name: letters, digits, dot, dash and underscore")
    seed: int = Field(1, ge=0, lt=2**31, description="decides weights, order, dropout and negatives")
    runs_dir: str = Field("runs", description="folder or URI (s3://bucket/prefix) that holds the run directories")
    data: DataConfig = Field(description="from logs to a prepared data set")
    sequence: SequenceConfig = Field(SequenceConfig(), description="how events become windows")
    batch: BatchConfig = Field(BatchConfig(), description="what a step is made of")
    semantic_ids: SemanticIdsConfig | None = Field(
        None, description="codes of the items, for models that write codes; null is none"
    )
    inputs: InputsConfig = Field(InputsConfig(), description="what the model sees of an event besides its item")
    model: Model = Field(description="the network")
    loss: Loss = Field(description="the training objective")
    heads: HeadsConfig = Field(HeadsConfig(), description="what is predicted of the next event besides its item")
    optimizer: Optimizer = Field(AdamWConfig(), description="how weights follow gradients, and how fast")
    engine: Engine = Field(DeepSpeedConfig(), description="how a step is executed")
    train: TrainConfig = Field(description="how long to train")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="full-catalogue evaluation")
    cluster: ClusterConfig = Field(ClusterConfig(), description="the workers")
    placement: PlacementConfig = Field(PlacementConfig(), description="which machines do what")
    faults: FaultsConfig = Field(FaultsConfig(), description="poisoned steps and hangs")
    tracking: TrackingConfig = Field(TrackingConfig(), description="metrics elsewhere")

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, values: Any) -> Any:
        """Runs of before 2026-11-27 saved `log_windows` under `train`."""
        train = values.get("train") if isinstance(values, dict) else None
        tracking = values.get("tracking") or {} if isinstance(values, dict) else None
        if not isinstance(train, dict) or "log_windows" not in train or not isinstance(tracking, dict):
            return values
        if "log_windows" in tracking:
            raise ValueError("train.log_windows is tracking.log_windows now; set that one alone")
        train = dict(train)
        moved = {**tracking, "log_windows": train.pop("log_windows")}
        return {**values, "train": train, "tracking": moved}

    @model_validator(mode="after")
    def _places(self) -> "ExperimentConfig":
        check_no_secrets("runs_dir", self.runs_dir)
        if "://" in self.runs_dir and self.evaluation.validation == "background":
            raise ValueError(
                "evaluation.validation (background) needs a folder that its tasks share with the workers, and runs_dir "
                f"is {self.runs_dir}; use evaluation.validation: inline, or a shared folder as runs_dir"
            )
        return self

    @model_validator(mode="after")
    def _divides(self) -> "ExperimentConfig":
        check_shares(self.batch.micro_batches_per_step, self.cluster.workers)
        return self

    @model_validator(mode="after")
    def _readable(self) -> "ExperimentConfig":
        engine = self.engine
        unreadable = isinstance(engine, DeepSpeedConfig) and engine.zero_stage == 0 and engine.precision == "bf16"
        if unreadable and self.evaluation.validation == "background":
            raise ValueError(
                "evaluation.validation (background) cannot read the checkpoints of engine.zero_stage 0 with "
                "engine.precision bf16; use zero_stage 1, 2 or 3, or evaluation.validation: inline"
            )
        return self

    @model_validator(mode="after")
    def _nothing_to_validate(self) -> "ExperimentConfig":
        if not self.refits:
            return self
        for name, value, way_out in (
            ("data.split.name", self.data.split.name, "leave-one-out"),
            ("train.patience", self.train.patience, None),
            ("evaluation.validation", self.evaluation.validation, "inline"),
        ):
            if value != way_out:
                shown = "null" if way_out is None else way_out
                raise ValueError(
                    f"sequence.train_on: train+validation leaves nothing to validate on, and {name} is {value}; set "
                    f"it to {shown}, or sequence.train_on: train"
                )
        return self

    @model_validator(mode="after")
    def _weights_of_targets(self) -> "ExperimentConfig":
        wanted, weighted = self.sequence.target_actions, self.loss.action_weights or {}
        idle = [name for name in weighted if wanted is not None and name not in wanted]
        if idle:
            raise ValueError(
                f"loss.action_weights has {', '.join(idle)}, and sequence.target_actions ({', '.join(wanted or ())}) "
                "leaves that out of the loss; take it out of the weights, or add it to the targets"
            )
        return self

    @model_validator(mode="after")
    def _offloads(self) -> "ExperimentConfig":
        plain = isinstance(self.optimizer, AdamWConfig) and self.optimizer.table is None
        if getattr(self.engine, "offload_optimizer", False) and not plain:
            table = "null" if self.optimizer.table is None else self.optimizer.table.name
            raise ValueError(
                "engine.offload_optimizer needs AdamW for all weights, because that is what DeepSpeed has in host "
                f"memory, and optimizer.name is {self.optimizer.name}, optimizer.table {table}; set "
                "engine.offload_optimizer: false, or use optimizer.name: adamw and optimizer.table: null"
            )
        return self

    @model_validator(mode="after")
    def _vectors(self) -> "ExperimentConfig":
        if self.inputs.item_vectors is not None and self.data.item_vectors is None:
            raise ValueError(
                "inputs.item_vectors needs vectors in the prepared set, and data.item_vectors is null; name their file "
                "in data.item_vectors.path, or leave inputs.item_vectors out"
            )
        return self

    @model_validator(mode="after")
    def _codes(self) -> "ExperimentConfig":
        name = self.model.name
        if not self.writes_codes:
            for is_set, what in (
                (self.inputs.users is not None, "inputs.users is a token of"),
                (self.evaluation.decoding != "beam", "evaluation.decoding: exhaustive is for"),
            ):
                if is_set:
                    raise ValueError(
                        f"{what} models that write codes, and model.name is {name}; leave it out, or use code-decoder "
                        "or tiger"
                    )
            return self
        if self.semantic_ids is None:
            raise ValueError(
                f"model.name: {name} writes codes of items, and semantic_ids is null; set semantic_ids.path to the "
                "folder of a map, as `genrec tokenize` makes one"
            )
        as_items = isinstance(self.model, CodeDecoderConfig) and self.model.history == "items"
        sharded = getattr(self.engine, "zero_stage", 0) == 3
        for is_wrong, sentence in (
            (
                not isinstance(self.loss, FullSoftmaxConfig),
                f"is trained with loss.name: full-softmax, not {self.loss.name}",
            ),
            (bool(self.heads.weights), "has no heads; leave heads out"),
            (self.inputs.item_vectors is not None, "knows items by their codes; leave inputs.item_vectors out"),
            (
                not as_items and bool(self.inputs.names),
                f"reads codes alone; leave inputs.{', inputs.'.join(self.inputs.names)} out, or use code-decoder with "
                "history: items",
            ),
            (
                sharded and self.evaluation.decoding == "exhaustive",
                "needs evaluation.decoding: beam with engine.zero_stage 3, whose workers go through the model together",
            ),
        ):
            if is_wrong:
                raise ValueError(f"model.name: {name} {sentence}")
        return self

    @model_validator(mode="after")
    def _one_position(self) -> "ExperimentConfig":
        loss, dim = self.loss, self.model.dim
        if not isinstance(loss, FullSoftmaxConfig) and loss.per_position:
            needed = 4 * loss.num_negatives * dim
            if needed > loss.max_logits_bytes:
                raise ValueError(
                    f"loss.max_logits_bytes ({loss.max_logits_bytes}) must hold the vectors of one position's "
                    f"loss.num_negatives ({loss.num_negatives}) at model.dim ({dim}); raise it to {needed} or more"
                )
        return self

    @property
    def writes_codes(self) -> bool:
        """Whether the model writes codes of the next item, in place of scoring items."""
        return isinstance(self.model, CODE_MODELS)

    @property
    def refits(self) -> bool:
        """Whether the validation events are trained on too."""
        return self.sequence.train_on == "train+validation"

    @property
    def evaluated_roles(self) -> tuple[Role, ...]:
        """The roles that a run may be measured on: not those that it was trained on."""
        return ("test",) if self.refits else ("validation", "test")

    def accumulation(self, workers: int) -> int:
        """Micro-batches that each of `workers` adds up before a step."""
        return self.batch.micro_batches_per_step // workers


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
