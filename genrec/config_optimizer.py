"""Settings of the optimizer, its schedule and the average of the weights: the `optimizer` section."""

from typing import Literal

from pydantic import Field

from genrec.config_data import Section


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
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a running average of the weights, which is validated and exported; null keeps none",
    )
