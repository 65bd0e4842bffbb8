"""How a trained model is to answer: what `genrec recommend` and `genrec evaluate` can be told beside the run."""

from pathlib import Path

from pydantic import Field, model_validator

from genrec.config_data import Section


class ServedModel(Section):
    """Which model answers, where that is more than the run's own."""

    map: Path | None = Field(
        None, description="models over codes: folder of their map, extended since the training by new items"
    )
    rerank: Path | None = Field(
        None, description="models over codes: run or export whose scores order the items that are found"
    )
    candidates: int | None = Field(
        None, ge=1, description="with --rerank: items that are found for it; default: evaluation.beam_width"
    )
    cold_items: bool = Field(
        False, description="with --rerank: all items that it knows by their vectors alone are scored too"
    )

    @model_validator(mode="after")
    def _with_rerank(self) -> "ServedModel":
        given = [f"--{name.replace('_', '-')}" for name in ("candidates", "cold_items") if getattr(self, name)]
        if given and self.rerank is None:
            raise ValueError(f"{' and '.join(given)} is about re-ranking; add --rerank RUN, or leave it out")
        return self


class Serving(ServedModel):
    """Which model answers, and with which items."""

    item_type: list[str] = Field([], description="items of this type alone; again for more types")
    max_per_prefix: int | None = Field(
        None, ge=1, description="models over codes: items of a list that may share their first code"
    )

    @model_validator(mode="after")
    def _no_codes_of_cold_items(self) -> "Serving":
        if self.cold_items and self.max_per_prefix is not None:
            raise ValueError(
                "--max-per-prefix bounds the items that are found by their codes, and --cold-items adds others; leave "
                "out one of them"
            )
        return self


AS_TRAINED = Serving()
"""The run's own model, and all items."""
