"""Made-up results of background validations."""

from genrec.training.validations import Validated, protocol_of

PROTOCOL = protocol_of({"evaluation": {"metric": "ndcg@10", "filter_seen": True}})


def result_of(
    step: int, metric: float | None, *, protocol: list | None = None, problem: str | None = None
) -> Validated:
    return Validated(
        step=step,
        epoch=step / 10,
        elapsed_s=1.5 * step,
        saved_s=100.0,
        done_s=101.0,
        protocol=PROTOCOL if protocol is None else protocol,
        metric=metric,
        metrics={} if metric is None else {"ndcg@10": metric},
        problem=problem,
    )
