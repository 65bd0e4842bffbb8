"""The result of `chaos.py` as rows of its JSON and as a page of Markdown."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from chaos_judge import FaultResult
from genrec.bench.result import Result, Row


def fault_rows(results: Sequence[FaultResult]) -> list[Row]:
    """One row for each fault, in the order they came."""
    return [
        {
            "kind": result.fault.kind,
            "what": result.fault.what,
            "at_step": result.fault.at_step,
            "checkpoint_step": result.fault.checkpoint_step,
            "steps_lost": result.steps_lost,
            "steps_allowed": result.allowed,
            "restarts": result.restarts,
            "recover_s": result.recover_s,
            "lasted_s": result.fault.lasted_s,
            "commands_run_again": len(result.fault.exits),
            "how_the_command_ended": "; ".join(result.fault.exits),
            "survived": int(result.survived),
        }
        for result in results
    ]


def markdown(result: Result) -> str:
    """What is said about the run: the verdict, a table by kind of fault, and the log of all faults."""
    figures, rows = result.medians, result.rows
    return "\n".join([*_verdict(figures, result.commit), "", *_by_kind(rows), "", *_log(rows), ""])


def _verdict(figures: dict[str, Any], commit: str) -> list[str]:
    setup = figures["setup"]
    namespaces = "network namespaces" if setup["namespaces"] is True else f"one address ({setup['namespaces']})"
    lines = [f"Chaos run at {commit}, seed {setup['seed']}, {setup['nodes']} nodes, {namespaces}:"]
    if setup["faults_left_out"]:
        lines.append(f"* left out, because {setup['volume']}: {', '.join(setup['faults_left_out'])}")
    if "faults" in figures:
        lines += [
            f"* faults survived: {figures['survived']} of {figures['faults']}; {figures['restarts_in_all']} restarts, "
            f"the command was run {setup['commands']} times",
            f"* steps lost per fault: median {_number(figures['steps_lost_median'])}, at most "
            f"{figures['steps_lost_max']} (a checkpoint every {figures['interval']}); "
            f"{figures['steps_trained']} steps trained for {figures['end_step']}",
            f"* seconds from a fault to the next trained step: median {_number(figures['recover_median_s'])}, at most "
            f"{_number(figures['recover_max_s'])}",
        ]
    if "metric" in figures:
        metric, loss = figures["metric"], figures["loss"]
        lines += [
            f"* test {metric['name']}: {metric['chaos']:.4f}, calm {metric['calm']:.4f}, standard error "
            f"{metric['standard_error']:.4f}",
            f"* largest relative difference of a step's loss to the calm run: "
            f"{loss['largest_relative_difference']:.2g} (step {loss['at_step']})",
        ]
    problems = figures["problems"]
    return [*lines, *(f"* **wrong: {problem}**" for problem in problems)] if problems else [*lines, "* nothing wrong"]


def _by_kind(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| fault | times | survived | steps lost, each | seconds to the next step, median | command run again |",
        "|---|--:|--:|---|--:|--:|",
    ]
    for kind in dict.fromkeys(str(row["kind"]) for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        seconds = [float(row["recover_s"]) for row in mine if row["recover_s"] is not None]
        lines.append(
            f"| {kind} | {len(mine)} | {sum(int(row['survived'] or 0) for row in mine)} | "
            f"{', '.join(str(row['steps_lost']) for row in mine)} | "
            f"{_number(median(seconds) if seconds else None)} | "
            f"{sum(int(row['commands_run_again'] or 0) for row in mine)} |"
        )
    return lines


def _log(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| at step | newest checkpoint | what | steps lost | restarts | seconds | the command |",
        "|--:|--:|---|--:|--:|--:|---|",
    ]
    for row in rows:
        ended = str(row["how_the_command_ended"]).replace("|", "/") or "went on"
        lines.append(
            f"| {row['at_step']} | {row['checkpoint_step']} | {row['what']} | {row['steps_lost']} | "
            f"{row['restarts']} | {_number(row['recover_s'])} | {ended} |"
        )
    return lines


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:g}"
