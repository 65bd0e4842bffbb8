"""Settings that decide where and how a run is computed, and not what comes of it.

Of `batch.micro_batches_per_step` that holds for a run that goes on, or for steps that are packed for the same number
(`BatchConfig.parts_packed_for`).
"""

from collections.abc import Sequence

NEUTRAL = (
    "cluster",
    "placement",
    "tracking",
    "engine.name",
    "engine.zero_stage",
    "engine.offload_optimizer",
    "batch.micro_batches_per_step",
    "batch.steps_per_block",
    "data.max_rejected_fraction",
    "data.max_rejected_files",
    "data.prepared",
    "evaluation.max_scores_bytes",
    "evaluation.max_waiting_validations",
    "evaluation.shard_table_bytes",
    "evaluation.users_per_batch",
    "evaluation.validation_timeout_s",
    "faults.pause_timeout_s",
    "faults.step_timeout_s",
    "semantic_ids.path",  # a checkpoint names its map by its digest
    "train.checkpoint_dir",  # start.py looks whether the checkpoints are there
    "train.checkpoint_every_steps",
    "train.checkpoint_upload",
    "train.keep_best",
    "train.keep_checkpoints",
    "train.log_every_steps",
)
"""Settings, or whole sections."""


def is_covered(key: str, names: Sequence[str]) -> bool:
    """Whether a setting, `section.field`, is one of `names` or inside of one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
