"""The `sequence.`, `batch.` and `inputs.` settings: what a step is made of, and what the model sees of an event.

`genrec.config` has all the others.
"""

from typing import Literal

from pydantic import Field, model_validator

from genrec.config_data import Section


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
    train_on: Literal["train", "train+validation"] = Field(
        "train",
        description="train+validation is a refit (`genrec refit RUN` sets it): nothing is left to validate on, and the "
        "weights of the last step are exported",
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
        2, ge=1, le=65_536, description="parts of a step; a multiple of every number of workers"
    )
    packed_parts: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="parts that steps are packed for; null is micro_batches_per_step, or a run's own",
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

    @property
    def parts_packed_for(self) -> int:
        """Parts that steps are packed for, whatever number they are dealt out in."""
        return self.packed_parts or self.micro_batches_per_step


class ItemVectorInputs(Section):
    """An item is its id and a learned projection of its frozen vector: as input, and where items are scored."""

    ids: bool = Field(True, description="false: items that have a vector are known by it alone")
    id_dropout: float = Field(
        0.1, ge=0, le=1, description="probability that an item with a vector is known by it alone, in training"
    )


class UserInputs(Section):
    """A token of the user before the history: a row of a small table, by a hash of the user."""

    rows: int = Field(2_000, ge=1, description="rows that all users share; TIGER has 2,000")
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of training windows whose user counts as unknown, which teaches the row of unknown users; "
        "TIGER has none, and 0 leaves that row as it began",
    )


class InputsConfig(Section):
    """What the model sees of an event besides its item."""

    actions: bool = Field(False, description="a learned vector for the action (stream, skip, ...)")
    item_types: bool = Field(False, description="a learned vector for the item's type (track, episode, ...)")
    time_features: tuple[Literal["gap", "hour", "weekday"], ...] = Field(
        (), description="learned vectors: time since the event before, hour and weekday (UTC)"
    )
    item_vectors: ItemVectorInputs | None = Field(
        None, description="items are known by `data.item_vectors`, too; null is by their ids alone"
    )
    users: UserInputs | None = Field(
        None, description="models that write codes: a token of the user before the history; null is none"
    )

    @property
    def items(self) -> tuple[str, ...]:
        """What an item is known by, for protocol cards."""
        if self.item_vectors is None:
            return ("items",)
        return ("items", "item vectors") if self.item_vectors.ids else ("item vectors in place of ids",)

    @property
    def names(self) -> tuple[str, ...]:
        """What is added to the items, for protocol cards and messages."""
        chosen = {"actions": self.actions, "item_types": self.item_types}
        return (*(name for name, on in chosen.items() if on), *self.time_features)
