"""The protocol card: everything that decides whether two published numbers may be compared."""

from genrec.config import ExperimentConfig, LeaveOneOutSplit
from genrec.data.manifest import Manifest
from genrec.data.schema import Role

ProtocolCard = dict[str, str | bool | int]


def protocol_card(
    config: ExperimentConfig,
    manifest: Manifest,
    model_uses_query_time: bool,
    role: Role,
    best_step: int | None = None,
    *,
    max_users: int | None = None,
) -> ProtocolCard:
    """How the numbers of `role` were made, one plain sentence or value an entry; printed with every metric.

    `best_step` is the step whose weights are evaluated (None: the newest), `max_users` the sample that was asked for.
    """
    actions = config.sequence.target_actions
    return {
        "role": role,
        "split": _split(manifest),
        "filters": _filters(config),
        "order": _order(manifest),
        "history": _history(manifest, role),
        "window_events": config.sequence.max_length,
        "inputs": ", ".join(("items", *config.inputs.names)),
        "uses_query_time": model_uses_query_time,
        "targets": "events of every action" if actions is None else f"only events with action {', '.join(actions)}",
        "candidates": f"the whole catalogue, {manifest.num_items} items, none sampled",
        "filter_seen": config.evaluation.filter_seen,
        "repeated_targets": "kept: a target that the user has seen before stays in the ranking",
        "ties": "against the model: items that score the same as the target rank before it",
        "sample": "every held-out user" if max_users is None else f"a fixed sample of at most {max_users} users",
        "epoch_choice": _epoch_choice(config, best_step),
        "refit_on_validation": False,
        "num_seeds": 1,
        "seed": config.seed,
        "data_hash": manifest.content_hash,
    }


def _split(manifest: Manifest) -> str:
    split = manifest.split
    if isinstance(split, LeaveOneOutSplit):
        return "leave-one-out: a user's last event is test, the one before it validation, the rest training"
    return (
        f"global-time: training before {split.validation_from} s, validation before {split.test_from} s, then test; "
        "a user's first event in a period is the target"
    )


def _filters(config: ExperimentConfig) -> str:
    data = config.data
    rules = []
    if data.min_user_events > 1 or data.min_item_events > 1:
        rules.append(
            f"users with >= {data.min_user_events} and items with >= {data.min_item_events} events, repeated until "
            "both hold"
        )
    if data.min_value is not None:
        rules.append(f"events with a value >= {data.min_value:g}")
    return "; ".join(rules) or "none"


def _order(manifest: Manifest) -> str:
    if not manifest.has_times:
        return "the log's own order, never sorted again"
    return "by time, stable: events of the same second keep the log's order"


def _history(manifest: Manifest, role: Role) -> str:
    if isinstance(manifest.split, LeaveOneOutSplit) and role == "test":
        return "every event before the target, the validation item included"
    return "every event before the target"


def _epoch_choice(config: ExperimentConfig, best_step: int | None) -> str:
    if best_step is None:
        return "none: the newest weights"
    return f"the step with the best {config.evaluation.metric} on validation: step {best_step}"
