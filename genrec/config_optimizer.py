"""Settings of the optimizer, its schedule and the average of the weights: the `optimizer` section."""

from typing import Annotated, Literal

from pydantic import Field

from genrec.config_data import Section, kind_by_default


class RowwiseAdagradConfig(Section):
    """Row-wise Adagrad for the item table and the tables of other inputs: one accumulator a row, no weight decay."""

    name: Literal["rowwise-adagrad"]
    lr: float = Field(1e-2, gt=0, description="peak learning rate of the tables, on the same schedule")
    eps: float = Field(1e-8, gt=0, description="added to the root of an accumulator")


class OptimizerConfig(Section):
    """What all optimizers have: AdamW's settings, the schedule, and the average of the weights."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the first moment")
    beta2: float = Field(0.98, ge=0, lt=1, description="AdamW: decay of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    gradient_clipping: float = Field(0.0, ge=0, description="largest gradient norm; 0 does not clip")
    schedule: Literal["constant", "linear", "cosine", "inverse-sqrt"] = Field(
        "constant", description="after the warm-up"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    min_lr_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="lowest rate after the warm-up, as a fraction of lr; linear and cosine end there",
    )
    table: RowwiseAdagradConfig | None = Field(None, description="an optimizer of their own for tables; null is AdamW")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a running average of the weights, which is validated and exported; null keeps none",
    )


class AdamWConfig(OptimizerConfig):
    """AdamW for all weights, or for all but the tables."""

    name: Literal["adamw"] = "adamw"


class MuonConfig(OptimizerConfig):
    """Muon for the matrices of linear layers; AdamW for the rest: positions, biases, norms, and the tables."""

    name: Literal["muon"]
    matrix_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the matrices, on the same schedule; null is lr"
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="decay of the matrices' momentum")


Optimizer = Annotated[AdamWConfig | MuonConfig, Field(discriminator="name"), kind_by_default("adamw")]
