"""The protocol card: everything that decides whether two published numbers may be compared."""

from collections.abc import Mapping
from typing import Any

from genrec.config import ExperimentConfig, LeaveOneOutSplit
from genrec.data.manifest import Manifest
from genrec.data.schema import Role

ProtocolCard = dict[str, str | bool | int]

CHOSEN_STEP = ": step "

OF_THE_RUN = ("window_events", "inputs", "starts_from", "answered_by", "seed", "num_seeds")
"""Lines of the card that say what the run did with what it was allowed to know. Runs may differ in them, that is what
one compares; all other lines say what was asked, and must agree."""

_WAYS_OUT = {
    "data_hash": "prepare one data set and train both on it",
    "split": "set data.split alike, prepare again and train both on it",
    "filters": "filter alike, prepare again and train both on it",
    "filter_seen": "set evaluation.filter_seen alike",
    "targets": "set sequence.target_actions alike",
    "uses_query_time": "compare with a run whose model is told the time of the target too, or train this one without "
    "(hstu: model.query_time=false)",
    "decoding": "compare models that write codes with each other, at one evaluation.decoding and evaluation.beam_width",
    "epoch_choice": "choose the epoch by the same evaluation.metric",
    "refit_on_validation": "compare refits with refits (`genrec refit RUN`)",
    "sample": "evaluate everybody: `genrec evaluate RUN`",
}


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
    card: ProtocolCard = {
        "role": role,
        "split": _split(manifest),
        "filters": _filters(config),
        "order": _order(manifest),
        "history": _history(manifest, role),
        "window_events": config.sequence.max_length,
        "inputs": ", ".join((*_known_by(config), *config.inputs.names)),
        "uses_query_time": model_uses_query_time,
        "targets": "events of every action" if actions is None else f"only events with action {', '.join(actions)}",
        "candidates": _candidates(manifest),
        "filter_seen": config.evaluation.filter_seen,
        "repeated_targets": "kept: a target that the user has seen before stays in the ranking",
        "ties": _ties(config),
        "sample": "every held-out user" if max_users is None else f"a fixed sample of at most {max_users} users",
        "epoch_choice": _epoch_choice(config, best_step),
        "refit_on_validation": config.refits,
        "num_seeds": 1,
        "seed": config.seed,
        "data_hash": manifest.content_hash,
    }
    if config.train.start_from is not None:
        card["starts_from"] = f"the weights of {config.train.start_from}, and what they were trained on"
    return card | {"decoding": _decoding(config)} if config.writes_codes else card


def protocol_differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """A clause for every line of two cards that must agree and does not: both values, and the way out."""
    names = [name for name in dict.fromkeys((*first, *other)) if name not in OF_THE_RUN]
    return [
        f"{name} is {compared_value(first, name)!r} and {compared_value(other, name)!r}"
        + (f" ({_WAYS_OUT[name]})" if name in _WAYS_OUT else "")
        for name in names
        if compared_value(first, name) != compared_value(other, name)
    ]


def compared_value(card: Mapping[str, Any], name: str) -> Any:
    """A line of a card as it is compared: at which step the epoch's rule stopped is a result, not the rule."""
    value = card.get(name)
    return value.rpartition(CHOSEN_STEP)[0] or value if name == "epoch_choice" and isinstance(value, str) else value


def _candidates(manifest: Manifest) -> str:
    num_cold = manifest.item_vectors.num_cold_items if manifest.item_vectors is not None else 0
    cold = f" ({num_cold} of them without an event in the log: data.item_vectors.cold_items)" if num_cold else ""
    return f"the whole catalogue, {manifest.num_items} items{cold}, none sampled"


def _known_by(config: ExperimentConfig) -> tuple[str, ...]:
    if not config.writes_codes:
        return config.inputs.items
    items = ("items",) if getattr(config.model, "item_ids", False) else ()
    return ("codes", *items, *(("user",) if config.inputs.users is not None else ()))


def _ties(config: ExperimentConfig) -> str:
    if config.writes_codes:
        return "as the list has them: of items that score the same, any may stand first"
    return "against the model: items that score the same as the target rank before it"


def _decoding(config: ExperimentConfig) -> str:
    evaluation = config.evaluation
    if evaluation.decoding == "exhaustive":
        return "codes: every item's codes are scored; a rank beyond the largest cut-off counts as missed"
    width = max(evaluation.beam_width, *evaluation.ks)
    return f"codes: beam search, width {width}; an item that no beam ends at counts as missed"


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
    if config.refits:
        return f"fixed before training, by the run that was refitted{CHOSEN_STEP}{best_step}"
    return f"the step with the best {config.evaluation.metric} on validation{CHOSEN_STEP}{best_step}"
