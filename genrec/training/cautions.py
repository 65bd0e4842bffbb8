"""Settings that are allowed and seldom meant: worker 0 says so at every start of a run.

They are lines of log.txt and in the `start` line of metrics.jsonl, from which the console and the report have them.
"""

from genrec.config import ExperimentConfig

FLAT_TEMPERATURE = 0.5
"""Cosines divided by more than this differ by less than 4: a softmax over thousands of items stays nearly flat."""


def cautions(config: ExperimentConfig, num_steps: int) -> list[str]:
    """A sentence for each such setting of a run of `num_steps` steps; none where there is nothing to say."""
    found = []
    loss, warmup = config.loss, config.optimizer.warmup_steps
    if warmup >= num_steps:
        found.append(
            f"The learning rate still rises when the run ends, because optimizer.warmup_steps is {warmup} and the run "
            f"has {num_steps} steps; lower it, or train longer."
        )
    pause = max(config.faults.pause_timeout_s, config.faults.step_timeout_s or 0)
    collective = config.cluster.collective_timeout_s
    if config.cluster.max_workers > 1 and collective < pause:
        found.append(
            f"Workers wait in a collective while one of them reads a checkpoint, exports or stores, and "
            f"cluster.collective_timeout_s ({collective}) ends that sooner than the limits of faults ({pause:g} s) "
            "allow; raise it, unless the model is small."
        )
    is_cosine = bool(getattr(config.model, "l2_normalize", False))
    if is_cosine and loss.temperature > FLAT_TEMPERATURE and not loss.learn_temperature:
        found.append(
            f"Cosine scores (model.l2_normalize) divided by loss.temperature {loss.temperature:g} hardly tell items "
            "apart; 0.05 is the published value, or set loss.learn_temperature."
        )
    actions = config.sequence.target_actions
    if loss.needs_target_shares and actions is not None:
        found.append(
            "logQ corrects in-batch negatives by each item's share of all training events, and "
            f"sequence.target_actions ({', '.join(actions)}) makes targets of some of them only; where items differ in "
            "what is done with them, use loss.negatives: popularity."
        )
    return found
