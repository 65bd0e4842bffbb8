"""The `engine.` settings: what holds and updates the weights. `genrec.config` has all the others."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genrec.config_data import Section, kind_by_default


class EngineSection(Section):
    """What all engines have in common."""

    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest",
        description="fp32 matrix products of training, in torch's words: high and medium are TF32 on a GPU, medium is "
        "bf16 inside of the product on a CPU that has it; evaluation stays at highest",
    )


class DeepSpeedConfig(EngineSection):
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


class TorchConfig(EngineSection):
    """Plain PyTorch: every worker holds everything. The reference that ZeRO is tested against."""

    name: Literal["torch"]
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 is autocast over fp32 weights")


class AutoConfig(EngineSection):
    """The engine that a plan finds fastest of those that fit (docs/planning.md); a run keeps the one it began with."""

    name: Literal["auto"]
    precision: Literal["fp32", "bf16"] = Field("fp32", description="that of the engine which is picked")


Engine = Annotated[
    DeepSpeedConfig | TorchConfig | AutoConfig, Field(discriminator="name"), kind_by_default("deepspeed")
]
