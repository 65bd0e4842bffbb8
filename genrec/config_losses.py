"""The `loss.` settings: the training objective. `genrec.config` has all the others."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genrec.config_data import Section

LEARNED_TEMPERATURES = (0.01, 10.0)
"""A learned temperature stays between these."""

MAX_TARGET_WEIGHT = 1_000.0


class LossSection(Section):
    """What all losses have in common."""

    temperature: float = Field(1.0, gt=0, description="scores are divided by it")
    learn_temperature: bool = Field(False, description="the temperature is a weight that starts there, 0.01 to 10")
    max_logits_bytes: int = Field(64 * 2**20, ge=2**16, description="logits held at any time, in bytes")
    action_weights: dict[str, float] | None = Field(
        None, min_length=1, description="weights of targets by their action; an action without one has 1"
    )
    value_weights: bool = Field(
        False,
        description="targets weigh their value too (data.keep_values): 0 to 1,000, and 1 where it is unknown",
    )

    @model_validator(mode="after")
    def _weights_in_bounds(self) -> "LossSection":
        wrong = [name for name, weight in (self.action_weights or {}).items() if not 0 <= weight <= MAX_TARGET_WEIGHT]
        if wrong:
            raise ValueError(
                f"action_weights {self.action_weights} must be 0 to {MAX_TARGET_WEIGHT:g}; mend {', '.join(wrong)}"
            )
        return self

    @model_validator(mode="after")
    def _temperature_in_bounds(self) -> "LossSection":
        lowest, highest = LEARNED_TEMPERATURES
        if self.learn_temperature and not lowest < self.temperature < highest:
            raise ValueError(
                f"temperature ({self.temperature:g}) must lie between {lowest:g} and {highest:g} where it is learned; "
                f"start from 0.05 or 1, say, or set learn_temperature to false"
            )
        return self

    @property
    def num_in_batch(self) -> int:
        """Targets of a step that the data stream brings along as negatives."""
        return 0

    @property
    def needs_train_counts(self) -> bool:
        """Whether the loss must know how often each item occurs in training."""
        return False

    @property
    def needs_target_shares(self) -> bool:
        """Whether it corrects negatives that are targets of the step."""
        return False


class FullSoftmaxConfig(LossSection):
    """Cross entropy over the whole catalogue, in chunks."""

    name: Literal["full-softmax"]
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a target that is spread evenly over all items (or codes of a level)"
    )


class SampledSoftmaxConfig(LossSection):
    """Cross entropy over the target and sampled negatives."""

    name: Literal["sampled-softmax"]
    num_negatives: int = Field(256, ge=1, description="negatives, shared by a micro-batch unless per_position")
    negatives: Literal["uniform", "popularity", "in-batch", "mixed"] = Field(
        "uniform",
        description="drawn from all items, by popularity, from the targets of the whole step, or half of these",
    )
    popularity_power: float | None = Field(
        None, ge=0, le=2, description="popularity: drawn as training events ** this; null is 1"
    )
    in_batch_fraction: float | None = Field(
        None, gt=0, lt=1, description="mixed: share of the negatives that are targets of the step; null is 0.5"
    )
    correction: Literal["auto", "logq", "none"] = Field(
        "auto", description="for items that are drawn more often than others; auto is logq for all but uniform"
    )
    per_position: bool = Field(
        False, description="negatives of its own for each target: as published, and several times slower"
    )

    @property
    def num_in_batch(self) -> int:
        """See `LossSection`."""
        if self.negatives == "mixed":
            return round(self.num_negatives * (0.5 if self.in_batch_fraction is None else self.in_batch_fraction))
        return self.num_negatives if self.negatives == "in-batch" else 0

    @property
    def num_popular(self) -> int:
        """Negatives that are drawn by popularity."""
        return self.num_negatives if self.negatives == "popularity" else 0

    @property
    def num_uniform(self) -> int:
        """Negatives that are drawn from all items alike."""
        return self.num_negatives - self.num_in_batch - self.num_popular

    @property
    def corrected(self) -> bool:
        """Whether scores are corrected for how often an item is drawn."""
        return self.correction == "logq" or (self.correction == "auto" and self.negatives != "uniform")

    @property
    def needs_train_counts(self) -> bool:
        """See `LossSection`."""
        return self.num_popular > 0 or self.needs_target_shares

    @property
    def needs_target_shares(self) -> bool:
        """See `LossSection`."""
        return self.corrected and self.num_in_batch > 0

    @model_validator(mode="after")
    def _one_row(self) -> "SampledSoftmaxConfig":
        check_one_row(self.num_negatives, self.max_logits_bytes)
        return self

    @model_validator(mode="after")
    def _fits_the_source(self) -> "SampledSoftmaxConfig":
        for name, source in (("popularity_power", "popularity"), ("in_batch_fraction", "mixed")):
            if getattr(self, name) is not None and self.negatives != source:
                raise ValueError(
                    f"{name} ({getattr(self, name):g}) is for negatives: {source}, not {self.negatives}; leave it out, "
                    f"or use negatives: {source}"
                )
        if self.per_position and self.negatives in ("in-batch", "mixed"):
            raise ValueError(
                f"negatives: {self.negatives} are targets of the whole step, which all positions share; leave out "
                "per_position, or use negatives: uniform or popularity"
            )
        if self.negatives == "mixed" and not 0 < self.num_in_batch < self.num_negatives:
            raise ValueError(
                f"in_batch_fraction leaves {self.num_in_batch} of num_negatives ({self.num_negatives}) to the step's "
                "targets; mixed needs both kinds: use more negatives, another fraction, or another kind of negatives"
            )
        return self


class BCEConfig(LossSection):
    """Binary cross entropy: the target is one yes, uniform negatives are as many no."""

    name: Literal["bce"]
    num_negatives: int = Field(1, ge=1, description="uniform negatives for each target")
    per_position: bool = Field(True, description="negatives of its own for each target; false shares a micro-batch's")

    @model_validator(mode="after")
    def _one_row(self) -> "BCEConfig":
        check_one_row(self.num_negatives, self.max_logits_bytes, held=2)
        return self


class GBCEConfig(LossSection):
    """Generalised binary cross entropy (gSASRec, Petrov and Macdonald, 2023)."""

    name: Literal["gbce"]
    num_negatives: int = Field(256, ge=1, description="uniform negatives for each target")
    calibration: float = Field(0.75, ge=0, le=1, description="t: 0 is plain BCE, 1 calibrates in full")
    per_position: bool = Field(True, description="negatives of its own for each target; false shares a micro-batch's")

    @model_validator(mode="after")
    def _one_row(self) -> "GBCEConfig":
        check_one_row(self.num_negatives, self.max_logits_bytes, held=2)
        return self


def check_one_row(num_negatives: int, max_logits_bytes: int, *, held: int = 1) -> None:
    """Raises ValueError when a single target's logits, of which the loss holds `held` forms, would be too many."""
    needed = 4 * held * num_negatives
    if needed > max_logits_bytes:
        raise ValueError(
            f"max_logits_bytes ({max_logits_bytes}) must hold one row of num_negatives ({num_negatives}) fp32 logits"
            f"{' and their gradients' if held > 1 else ''}; raise it to {needed} or more"
        )


Loss = Annotated[FullSoftmaxConfig | SampledSoftmaxConfig | BCEConfig | GBCEConfig, Field(discriminator="name")]
