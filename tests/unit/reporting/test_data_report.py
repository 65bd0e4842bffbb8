"""`genrec inspect`: the page, the terminal and the JSON show the same set; mistakes are sentences."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from html_page import Page, check_accessible, check_self_contained
from rich.console import Console
from typer.testing import CliRunner

from genrec.cli import app
from genrec.data.manifest import RejectedFile, load_manifest, save_manifest
from genrec.errors import ConfigError, DataError
from genrec.reporting import data_facts
from genrec.reporting.data_charts import data_charts
from genrec.reporting.data_console import data_summary
from genrec.reporting.data_facts import DAY_S
from genrec.reporting.data_report import DataFacts, config_of, data_page, facts_json, inspect_data, write_data_page

SEQUENCES = [[1, 2, 1, 3], [1, 2], [1, 2, 3, 1, 4, 1, 2, 1, 5, 1]]
TIMES = [[0, 1, DAY_S, 4 * DAY_S], [5, 6], [2 * DAY_S] * 9 + [4 * DAY_S + 7]]
SETTINGS = ["sequence.max_length=8", "batch.tokens_per_step=16"]


@pytest.fixture
def prepared(tmp_path: Path, write_prepared: Callable[..., Path]) -> Path:
    return write_prepared(tmp_path / "tiny", SEQUENCES, times=TIMES, rows_per_group=1, string_ids=True)


def facts_of(folder: Path, *overrides: str) -> DataFacts:
    return inspect_data(config_of(folder, [*SETTINGS, *overrides]))


def shown(facts: DataFacts, width: int = 110) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(data_summary(facts), highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_page_shows_the_counts(prepared: Path) -> None:
    page = Page(data_page(facts_of(prepared)))
    check_self_contained(page)
    check_accessible(page)
    for words in (
        "Events 16 12 to train",
        "Events per user 4 median; mean 5.33",
        "Steps per epoch 1 56.2% full",
        "Padding avoided 62.5% of slots, at 8 each",  # 9 events in 3 windows of 8 slots
        "Top 1% of items 50.0%",
        "Gini of items 0.500",
        "Items never trained 1 of 5 items",
        "Windows 3 last, at most 8 events",
        "Budget filled 56.2%",
        "Padded to 8 2.67",
        "play 16 100.0%",
        "First event 1970-01-01 00:00 UTC",
        "5 days (UTC), 1970-01-01 to 1970-01-05",
    ):
        assert words in page.text, words
    titles = [label.partition(",")[0] for svg in page.all("svg") if (label := svg["aria-label"])]
    assert titles == ["Length of histories", "Popularity of items", "Concentration on items", "Events per day"]
    assert "estimated from" not in page.text
    assert "put aside" not in page.text


def test_example_rows_mark_the_targets(prepared: Path) -> None:
    text = data_page(facts_of(prepared))
    user = Page(text).text.partition("Examples ")[2]
    assert re.search(r"User user-100[012] \d+ events", user)
    targets = re.findall(r'<tr class="decisive">.*?</tr>', text)
    assert len(targets) in (0, 2)  # of the one user of the row group
    assert all("target" in row for row in targets)


def test_a_sample_says_that_it_is_one(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_facts, "SAMPLE_EVENTS", 1)
    facts = facts_of(prepared)
    assert "estimated from 1 of 3 row groups" in Page(data_page(facts)).text
    assert "estimated from 1 of 3 row groups" in shown(facts)


def test_names_from_the_log_are_escaped(tmp_path: Path, write_prepared: Callable[..., Path]) -> None:
    folder = write_prepared(tmp_path / "<b>set", SEQUENCES, times=TIMES)
    hostile = RejectedFile(path="<script>.csv", reason="[bold]cut", message="<i>It ends early.")
    save_manifest(folder, load_manifest(folder).model_copy(update={"rejected_files": (hostile,)}))
    facts = facts_of(folder)
    page = Page(data_page(facts))
    check_accessible(page)
    assert not {"script", "b", "i"} & {tag for tag, _ in page.elements}
    assert "<i>It ends early." in page.text
    assert "[bold]cut" in shown(facts)


def test_the_terminal_shows_the_counts(prepared: Path) -> None:
    text = shown(facts_of(prepared))
    for words in (
        r"9 to 16 +1 +33\.3%",
        r"Events +16 +12 in training",
        r"Top 1% of items +50\.0%",
        r"Budget filled +56\.2%",
        r"Padded to 8 +2\.67 +2\.6\d× +37\.5%",
        r"play +16 +100\.0%",
    ):
        assert re.search(words, text), words
    assert max(len(line) for line in shown(facts_of(prepared), width=80).splitlines()) <= 80


def test_the_json_has_the_same_numbers(prepared: Path) -> None:
    values = json.loads(json.dumps(facts_json(facts_of(prepared)), allow_nan=False))
    assert values["manifest"]["num_events"] == 16
    assert (values["num_files"], values["num_row_groups"]) == (1, 3)
    assert values["num_bytes"] == sum(path.stat().st_size for path in (prepared / "sequences").iterdir())
    assert values["lengths"]["median"] == 4
    assert values["plan"]["num_windows"] == 3
    assert values["plan"]["padded_to_max_length"]["slots_per_token"] == pytest.approx(24 / 9)
    assert values["actions"] == [{"name": "play", "num_events": 16}]
    assert values["periods"]["events_per_unit"] == [4, 1, 9, 0, 2]
    assert values["plan_problem"] == ""


def test_a_set_that_cannot_be_trained_on_is_shown_with_the_reason(
    tmp_path: Path, write_prepared: Callable[..., Path]
) -> None:
    facts = facts_of(write_prepared(tmp_path / "short", [[1], [2]]))
    assert facts.plan is None
    assert "nothing to learn from" in Page(data_page(facts)).text
    assert "nothing to learn from" in " ".join(shown(facts).split())
    assert facts_json(facts)["plan"] is None


def test_a_set_without_training_events_has_no_popularity(tmp_path: Path, write_prepared: Callable[..., Path]) -> None:
    late = [[10 * DAY_S, 11 * DAY_S]]
    settings = {"name": "global-time", "validation_from": 1, "test_from": 2}
    split = config_of(tmp_path, ["data.split=" + json.dumps(settings)]).data.split
    facts = facts_of(write_prepared(tmp_path / "late", [[1, 2]], times=late, split=split))
    page = Page(data_page(facts))
    assert len(page.all("svg")) == 2
    assert "Items never trained 2 of 2 items" in page.text


def test_times_at_both_ends_of_the_calendar_can_be_drawn(tmp_path: Path, write_prepared: Callable[..., Path]) -> None:
    times = [[-62_135_596_800, 0, 253_402_300_799]]
    facts = facts_of(write_prepared(tmp_path / "ages", [[1, 2, 3]], times=times))
    assert facts.periods is not None
    assert len(facts.periods.events_per_unit) <= data_facts.MAX_PERIODS
    caption = data_charts(facts.lengths, facts.popularity, facts.periods)[-1].caption
    assert "1-01-01 to 9999-12-31" in caption
    assert data_page(facts)


def test_one_event_is_a_set_too(tmp_path: Path, write_prepared: Callable[..., Path]) -> None:
    facts = facts_of(write_prepared(tmp_path / "one", [[1]], times=[[1_700_000_000]]))
    check_accessible(Page(data_page(facts)))
    assert "Longest" in shown(facts)


def test_the_command_prints_json_and_writes_the_page(prepared: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["inspect", str(prepared), "sequence.max_length=4", "--json", "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["plan"]["max_length"] == 4
    assert "tiny" in Page(page.read_text(encoding="utf-8")).text


def test_a_config_file_brings_its_settings(prepared: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"name: x\ndata: {{source: {{name: synthetic}}, prepared: {prepared}}}\nsequence: {{max_length: 5}}\n"
        "model: {name: sasrec}\nloss: {name: full-softmax}\ntrain: {max_epochs: 1}\n"
    )
    facts = inspect_data(config_of(file, ["batch.tokens_per_step=32"]))
    assert facts.plan is not None
    assert (facts.plan.max_length, facts.plan.tokens_per_step) == (5, 32)


def test_mistakes_are_sentences(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a prepared folder nor a config file"):
        config_of(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is not a prepared data set"):
        inspect_data(config_of(tmp_path))
    with pytest.raises(ConfigError, match="sequence"):
        config_of(prepared, ["sequence.max_lenth=4"])
    with pytest.raises(DataError, match="cannot be written"):
        write_data_page(facts_of(prepared), tmp_path / "no" / "page.html")
