"""Sizes of a model's weights, from the real model on the meta device: exact, and without memory."""

from dataclasses import dataclass

import numpy as np
import torch

from genrec.config import AdamWConfig, ExperimentConfig
from genrec.models.build import build_model
from genrec.planning.workload import ACTIONS_WITHOUT_DATA, Catalogue
from genrec.semantic.run_map import made_up_ids
from genrec.training.optim import weight_kinds

ZERO_3_WHOLE = 100_000
"""DeepSpeed keeps weights of fewer elements whole at stage 3 (`stage3_param_persistence_threshold`)."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Elements of the weights.

    table      of the item table [num_items + 1, dim]
    other      of all other weights
    whole      of those of `other` that ZeRO-3 keeps whole
    moments    elements of optimizer state for each part: what AdamW, Muon and row-wise Adagrad keep of it
    buffers    bytes of frozen item vectors, or of the items' codes
    """

    table: int
    other: int
    whole: int
    largest_other: int
    table_moments: int
    other_moments: int
    rowwise_table: bool
    buffers: int

    @property
    def total(self) -> int:
        """All weights."""
        return self.table + self.other


def without_vectors(config: ExperimentConfig) -> ExperimentConfig:
    """The config with a plain item table."""
    return config.model_copy(update={"inputs": config.inputs.model_copy(update={"item_vectors": None})})


def model_size(config: ExperimentConfig, catalogue: Catalogue) -> ModelSize:
    """The sizes of the model that a config trains on a catalogue."""
    types = np.zeros(catalogue.num_items + 1, dtype=np.uint8) if config.inputs.item_types else None
    actions = max(catalogue.num_actions, ACTIONS_WITHOUT_DATA)
    with torch.device("meta"):
        ids = made_up_ids(catalogue.num_items, catalogue.code_sizes) if config.writes_codes else None
        model = build_model(without_vectors(config), catalogue.num_items, types, actions, semantic_ids=ids)
    kinds = weight_kinds(model)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    table = sizes.pop("item_table.weight", 0)  # models that write codes may have none
    vectors = 4 * (catalogue.num_items + 1) * len(catalogue.code_sizes)
    if config.inputs.item_vectors is not None:
        sizes["item_table.projection"] = config.model.dim * catalogue.vector_dim
        sizes["item_table.missing"] = config.model.dim
        kinds |= {"item_table.projection": "other", "item_table.missing": "other"}
        vectors = 4 * (catalogue.num_items + 1) * catalogue.vector_dim
    rowwise = config.optimizer.table is not None
    muon = not isinstance(config.optimizer, AdamWConfig)
    per_element = {"matrix": 1 if muon else 2, "table": 0 if rowwise else 2, "other": 2}
    return ModelSize(
        table=table,
        other=sum(sizes.values()),
        whole=sum(size for size in sizes.values() if size < ZERO_3_WHOLE),
        largest_other=max(sizes.values(), default=0),
        table_moments=(catalogue.num_items + 1) * (table > 0) if rowwise else 2 * table,
        other_moments=sum(per_element[kinds[name]] * size for name, size in sizes.items()),
        rowwise_table=rowwise,
        buffers=vectors,
    )
