"""`genrec compare`: differences over shared users, refusals, and what is shown of them."""

import copy
import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated_run import PROTOCOL, complete_records, config_values, write_run
from html_page import Page, check_accessible, check_self_contained
from rich.console import Console
from typer.testing import CliRunner

from genrec.cli import app
from genrec.errors import ConfigError, DataError, ProtocolError
from genrec.evaluation.user_ranks import UserRanks, write_ranks
from genrec.reporting import comparison_tables
from genrec.reporting.compare_console import comparison_summary
from genrec.reporting.compare_page import write_comparison_page
from genrec.reporting.comparison import compare_runs, comparison_json
from genrec.run_dir import RunDir

NUM_USERS = 3_000


def some_ranks(shift: int = 0, users: range = range(NUM_USERS)) -> np.ndarray:
    """Ranks of the users `users`; every third one's is better by `shift`."""
    ranks = 1 + np.random.default_rng(1).exponential(30, NUM_USERS).astype(np.int64)
    ranks[::3] = np.maximum(1, ranks[::3] - shift)
    everyone = np.stack([np.arange(NUM_USERS), ranks, ranks, ranks], axis=1)
    return everyone[users.start : users.stop : users.step]


def write(
    folder: Path,
    name: str,
    ranks: np.ndarray,
    step: int = 1_320,
    config: dict[str, Any] | None = None,
    **card: Any,
) -> Path:
    """An evaluated run; `card` are lines of its protocol that differ from PROTOCOL, `config` sections of its config."""
    role = {
        "protocol": {**PROTOCOL, "num_users": NUM_USERS, **card},
        "best_step": step,
        "num_parameters": 812_345,
        "beyond_accuracy": {"coverage@10": 0.42, "novelty@10": 11.3, "gini@10": 0.91},
    }
    run = write_run(
        folder / name, complete_records(), evaluated={"test": role}, config=config_values(name=name, **(config or {}))
    )
    write_ranks(run.ranks_path("test"), UserRanks(ranks, step, NUM_USERS))
    return folder / name


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A base, a better run, a worse one, and one that is the base again."""
    shifts = {"base": 0, "better": 5, "worse": -5, "same": 0}
    return [write(tmp_path, name, some_ranks(shift), seed=len(name)) for name, shift in shifts.items()]


def test_runs_are_held_against_the_first(runs: list[Path]) -> None:
    comparison = compare_runs(runs, "test")
    verdicts = [run.differences["ndcg@10"].verdict for run in comparison.runs[1:]]
    assert verdicts == ["better beyond noise", "worse beyond noise", "within noise"]
    base, better = comparison.runs[:2]
    difference = better.metrics["hr@10"] - base.metrics["hr@10"]
    assert better.differences["hr@10"].value == pytest.approx(difference) != 0
    assert base.metrics["hr@10"] == np.mean(some_ranks()[:, 1] <= 10)
    low, high = base.intervals["hr@10"]
    assert low < base.metrics["hr@10"] < high
    assert base.training_s == pytest.approx(216) and base.num_parameters == 812_345
    assert base.differences == {} and base.num_shared == NUM_USERS


def test_a_difference_is_over_the_users_that_both_have(tmp_path: Path) -> None:
    first = write(tmp_path, "first", some_ranks(users=range(2_000)))
    second = write(tmp_path, "second", some_ranks(5, users=range(1_000, 3_000)))
    found = compare_runs([first, second], "test").runs[1]
    assert found.num_shared == 1_000
    shared = [some_ranks(shift)[1_000:2_000, 1] for shift in (0, 5)]
    assert found.differences["hr@10"].value == pytest.approx(np.mean(shared[1] <= 10) - np.mean(shared[0] <= 10))
    third = write(tmp_path, "third", some_ranks(users=range(2_500, 3_000)))
    with pytest.raises(DataError, match="share no user"):
        compare_runs([first, third], "test")


@pytest.mark.parametrize(
    ("line", "value", "said"),
    [
        ("data_hash", "f00d", r"data_hash is None and 'f00d' \(prepare one data set"),
        ("split", "global-time", r"split is .leave-one-out.* and 'global-time'"),
        ("filter_seen", True, r"filter_seen is False and True \(set evaluation.filter_seen alike\)"),
        ("targets", "only events with action play", "targets is None and 'only events with action play'"),
        ("uses_query_time", True, r"uses_query_time is False and True \(compare with a run.*model.query_time=false"),
        (
            "epoch_choice",
            "none: the newest weights",
            "epoch_choice is 'the step with the best.*' and 'none: the newest",
        ),
        ("sample", "a fixed sample of at most 5 users", "sample is None and 'a fixed"),
        ("some_new_rule", 3, "some_new_rule is None and 3"),
    ],
)
def test_other_protocols_are_not_ranked(tmp_path: Path, line: str, value: Any, said: str) -> None:
    first = write(tmp_path, "first", some_ranks())
    second = write(tmp_path, "second", some_ranks(), **{line: value})
    with pytest.raises(ProtocolError, match=said):
        compare_runs([first, second], "test")


def test_every_difference_of_every_run_is_named(tmp_path: Path) -> None:
    first = write(tmp_path, "first", some_ranks())
    second = write(tmp_path, "second", some_ranks(), filter_seen=True, ties="for the model")
    third = write(tmp_path, "third", some_ranks(), data_hash="f00d")
    with pytest.raises(ProtocolError) as caught:
        compare_runs([first, second, third], "test")
    for words in ("first and ", "filter_seen", "ties", "second", "data_hash", "third"):
        assert words in str(caught.value)


def test_what_a_run_did_with_its_knowledge_may_differ(tmp_path: Path) -> None:
    """Windows, inputs, seeds and the step that its epoch rule chose are the run's own."""
    first = write(tmp_path, "first", some_ranks(), window_events=50, inputs="items", seed=1)
    chosen = "the step with the best ndcg@10 on validation: step 99"
    own = {"window_events": 200, "inputs": "items, actions", "seed": 2}
    second = write(tmp_path, "second", some_ranks(), step=99, **own, epoch_choice=chosen)
    comparison = compare_runs([first, second], "test")
    assert comparison.runs[1].of_the_run == {**own, "step": 99}
    assert not own.keys() & comparison.protocol.keys()
    assert comparison.protocol["epoch_choice"] == "the step with the best ndcg@10 on validation"


def test_runs_that_cannot_be_read_are_refused(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(ConfigError, match="two different runs"):
        compare_runs([runs[0], runs[0]], "test")
    with pytest.raises(DataError, match="has no 'validation' for validation; run `genrec evaluate"):
        compare_runs(runs, "validation")
    unfinished = write_run(tmp_path / "unfinished", [], config=config_values(name="unfinished"))
    with pytest.raises(DataError, match=r"no evaluation\.json"):
        compare_runs([runs[0], unfinished.root], "test")
    stale = RunDir(write(tmp_path, "stale", some_ranks()))
    write_ranks(stale.ranks_path("test"), UserRanks(some_ranks(), 7, NUM_USERS))
    with pytest.raises(DataError, match=r"is of step 7 and evaluation\.json of step 1320"):
        compare_runs([runs[0], stale.root], "test")
    digest = write_ranks(stale.ranks_path("test"), UserRanks(some_ranks(), 1_320, NUM_USERS))
    told = json.loads(stale.evaluation_path.read_text())
    told["test"]["ranks_sha256"] = digest
    stale.evaluation_path.write_text(json.dumps(told))
    assert compare_runs([runs[0], stale.root], "test").runs[1].num_shared == NUM_USERS
    write_ranks(stale.ranks_path("test"), UserRanks(some_ranks(5), 1_320, NUM_USERS))  # and then it was killed
    with pytest.raises(DataError, match=r"other ranks than those that evaluation\.json was made of.*genrec evaluate"):
        compare_runs([runs[0], stale.root], "test")
    stale.ranks_path("test").unlink()
    with pytest.raises(DataError, match="is missing"):
        compare_runs([runs[0], stale.root], "test")
    stale.evaluation_path.write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        compare_runs([runs[0], stale.root], "test")


def test_lists_that_end_before_the_first_runs_cut_offs_are_refused(tmp_path: Path) -> None:
    """A model that writes items knows no rank beyond its list: 11 stands for all of them, and is no hit at 50."""
    writes = {"model": {"name": "tiger"}, "semantic_ids": {"path": "map"}}

    def listing(name: str, *ks: int) -> Path:
        ranks = some_ranks()
        ranks[:, 1] = np.minimum(ranks[:, 1], max(ks) + 1)
        return write(tmp_path, name, ranks, config={**writes, "evaluation": {"ks": ks}})

    short_run, long_run = listing("short", 5, 10), listing("long", 5, 10, 50)
    with pytest.raises(DataError, match=r"short writes lists of 10 items.* cut-off 50 of .*long.*smallest .*ks first"):
        compare_runs([long_run, short_run], "test")
    assert compare_runs([short_run, long_run], "test").runs[1].differences["hr@10"].value == 0
    scored = write(tmp_path, "scored", some_ranks(), config={"evaluation": {"ks": (5, 10)}})
    assert compare_runs([long_run, scored], "test").metrics[:3] == ["hr@5", "hr@10", "hr@50"]


def test_runs_of_one_name_are_told_apart_by_their_path(tmp_path: Path) -> None:
    first = write(tmp_path, "base", some_ranks())
    (tmp_path / "elsewhere").mkdir()
    second = write(tmp_path / "elsewhere", "base", some_ranks())
    assert [run.name for run in compare_runs([first, second], "test").runs] == [str(first), str(second)]


def test_the_terminal_shows_verdicts_metrics_costs_and_the_shared_protocol(runs: list[Path]) -> None:
    stream = StringIO()
    Console(file=stream, width=120).print(comparison_summary(compare_runs(runs, "test")))
    text = stream.getvalue()
    for words in (
        "Test, NDCG@10",
        "better beyond noise",
        "the first run",
        "3 min 36 s",
        "812,345",
        "42%",
        "filter seen",
    ):
        assert words.lower() in text.lower()
    row = next(line for line in text.splitlines() if line.strip().startswith("HR@10 "))
    assert (row.count("▲"), row.count("▼"), row.count("≈")) == (1, 1, 1)


def test_runs_of_several_seeds_get_their_mean_and_spread(tmp_path: Path) -> None:
    def trained(name: str, shift: int, **config: Any) -> Path:
        return write(tmp_path, name, some_ranks(shift), config=config)

    paths = [
        trained("wide", 0, seed=1),
        trained("wide-2", 5, seed=2, cluster={"workers": 1}, engine={"zero_stage": 0}),
        trained("careful", 5, seed=4, faults={"on_poisoned_step": "skip"}),
        trained("other", 0, seed=3, optimizer={"lr": 0.002}),
        trained("wide-again", -5, seed=1),  # the same seed: not another draw
    ]
    comparison = compare_runs(paths, "test")
    (group,) = comparison.seed_groups
    assert (group.names, group.seeds) == (("wide", "wide-2"), (1, 2))
    first, second = (run.metrics["hr@10"] for run in comparison.runs[:2])
    assert group.metrics["hr@10"] == pytest.approx(((first + second) / 2, abs(first - second) / 2**0.5))
    assert comparison_json(comparison)["seed_groups"][0]["metrics"]["hr@10"]["mean"] == group.metrics["hr@10"][0]
    stream = StringIO()
    Console(file=stream, width=160).print(comparison_summary(comparison))
    assert "wide, seeds 1, 2" in stream.getvalue() and " ± " in stream.getvalue()
    write_comparison_page(comparison, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    check_accessible(page)
    assert "Over seeds" in page.text and "wide, seeds 1, 2" in page.text
    assert compare_runs(paths[2:], "test").seed_groups == ()
    lengths = [{"sequence": {"train_on": "train+validation"}, "train": {"max_epochs": n}} for n in (3, 4)]
    refits = [trained(f"refit-{n}", 0, seed=n, **lengths[n]) for n in (0, 1)]
    assert compare_runs(refits, "test").seed_groups[0].seeds == (0, 1)


def test_slices_stand_side_by_side(tmp_path: Path, runs: list[Path]) -> None:
    def part(value: float, users: int) -> dict[str, Any]:
        return {"num_users": users, "metrics": {"ndcg@10": value}, "standard_errors": {"ndcg@10": value / 10}}

    for path, slices in (
        (runs[0], {"cold": {"no": part(0.5, 2_000), "yes": part(0.1, 4)}}),
        (runs[1], {"cold": {"no": part(0.6, 2_000)}}),
    ):
        file = RunDir(path).evaluation_path
        values = json.loads(file.read_text())
        values["test"]["slices"] = slices
        file.write_text(json.dumps(values))
    comparison = compare_runs(runs[:3], "test")
    (table,) = comparison_tables.slice_tables(comparison)
    assert table.title == "NDCG@10 by target in training"
    assert [(row.name, row.cells) for row in table.rows] == [
        ("no (2,000 users)", ("0.5000 ± 0.0500", "0.6000 ± 0.0600", "–")),
        ("yes (4 users)", ("0.1000", "–", "–")),
    ]
    stream = StringIO()
    Console(file=stream, width=160).print(comparison_summary(comparison))
    assert "0.6000 ± 0.0600" in stream.getvalue()
    write_comparison_page(comparison, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    check_accessible(page)
    assert "NDCG@10 by target in training" in page.text
    assert compare_runs(runs[1:], "test").runs[0].slices == {"cold": {"no": part(0.6, 2_000)}}


def test_weights_of_another_run_are_remarked_on(tmp_path: Path) -> None:
    paths = [write(tmp_path, "first", some_ranks()), write(tmp_path, "warm", some_ranks(), starts_from="runs/old")]
    stream = StringIO()
    Console(file=stream, width=120).print(comparison_summary(compare_runs(paths, "test")))
    assert "may have seen what is asked here" in " ".join(stream.getvalue().split())


def test_the_page_is_whole_and_escaped(tmp_path: Path, runs: list[Path]) -> None:
    comparison = compare_runs(runs, "test")
    write_comparison_page(comparison, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    check_self_contained(page)
    check_accessible(page)
    assert "better beyond noise" in page.text and "4 runs side by side" in page.text


def test_the_command_prints_json_and_refuses_with_exit_code_2(tmp_path: Path, runs: list[Path]) -> None:
    done = CliRunner().invoke(app, ["compare", *map(str, runs), "--json"])
    values = json.loads(done.stdout)
    assert values == json.loads(json.dumps(comparison_json(compare_runs(runs, "test"))))
    assert values["runs"][1]["differences"]["ndcg@10"]["verdict"] == "better beyond noise"
    other = write(tmp_path, "other", some_ranks(), filter_seen=True)
    refused = CliRunner().invoke(app, ["compare", str(runs[0]), str(other)])
    assert isinstance(refused.exception, ProtocolError) and refused.exception.exit_code == 2


def test_what_was_not_recorded_is_null(tmp_path: Path) -> None:
    paths = [write(tmp_path, name, some_ranks()) for name in ("first", "second")]
    for path in paths:
        run = RunDir(path)
        run.metrics_path.unlink()
        values = copy.deepcopy(json.loads(run.evaluation_path.read_text()))
        del values["test"]["num_parameters"], values["test"]["beyond_accuracy"]
        run.evaluation_path.write_text(json.dumps(values))
    found = comparison_json(compare_runs(paths, "test"))["runs"][0]
    assert (found["training_s"], found["events_per_s"], found["num_parameters"]) == (None, None, None)
    json.dumps(found, allow_nan=False)
