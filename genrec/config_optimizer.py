"""Settings of the optimizer, its schedule and the average of the weights: the `optimizer` section."""

from typing import Annotated, Literal

from pydantic import Field

from genrec.config_data import Section, kind_by_default


class OptimizerConfig(Section):
    """What all optimizers have: AdamW's settings, the schedule, and the average of the weights."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the first moment")
    beta2: float = Field(0.98, ge=0, lt=1, description="AdamW: decay of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    gradient_clipping: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    min_lr_fraction: float = Field(0.0, ge=0, le=1, description="where linear and cosine end, as a fraction of lr")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a running average of the weights, which is validated and exported; null keeps none",
    )


class AdamWConfig(OptimizerConfig):
    """AdamW for all weights."""

    name: Literal["adamw"] = "adamw"


class MuonConfig(OptimizerConfig):
    """Muon for the matrices of linear layers; AdamW for the rest: tables, positions, biases, norms."""

    name: Literal["muon"]
    matrix_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the matrices, on the same schedule; null is lr"
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="decay of the matrices' momentum")


Optimizer = Annotated[AdamWConfig | MuonConfig, Field(discriminator="name"), kind_by_default("adamw")]
