"""The headline of a run in the terminal."""

from io import StringIO

import pytest
from fabricated_run import evaluation, evaluation_in_depth
from rich.console import Console

from genrec.errors import DataError
from genrec.reporting.console import console_summary, slices_summary
from genrec.reporting.tables import slice_groups


def printed(*arguments: object) -> str:
    stream = StringIO()
    Console(file=stream, width=100).print(console_summary(*arguments))  # type: ignore[arg-type]
    return stream.getvalue()


def test_metrics_stand_beside_popularity_with_the_protocol_under_them() -> None:
    text = printed(evaluation())
    assert "Test, 22,363 users" in text
    row = next(line for line in text.splitlines() if "NDCG@10" in line)
    assert row.split() == ["NDCG@10", "0.0406", "0.0045", "9.02×"]
    assert text.index("NDCG@10") < text.index("Protocol") < text.index("against the model")


def test_intervals_and_lists_are_shown_where_they_were_measured() -> None:
    text = printed(evaluation_in_depth())
    row = next(line for line in text.splitlines() if "NDCG@10" in line)
    assert row.split() == ["NDCG@10", "0.0406", "0.0365", "to", "0.0447", "0.0045", "9.02×"]
    assert text.index("Coverage@10") < text.index("Action accuracy") < text.index("Protocol")
    assert "Next event" in text and "Next event" not in printed(evaluation())


def test_slices_stand_under_their_kind() -> None:
    stream = StringIO()
    Console(file=stream, width=80).print(slices_summary(evaluation_in_depth()))
    lines = [line.split() for line in stream.getvalue().splitlines() if line.strip()]
    assert ["4-7", "5,590", "25%", "0.0406", "0.0013"] in lines
    assert lines.index(["History", "length"]) < lines.index(["Type", "of", "the", "target"])


def test_slices_of_a_few_users_have_no_standard_error() -> None:
    evaluated = evaluation_in_depth()
    evaluated["test"]["slices"]["history_length"]["4-7"]["num_users"] = 9
    first, second = slice_groups(evaluated["test"], "ndcg@10")[0].rows
    assert (first.num_users, first.value, first.standard_error) == ("9", "0.0406", "–")
    assert second.standard_error == "0.0017"


def test_no_slices_are_said_to_be_none() -> None:
    stream = StringIO()
    Console(file=stream, width=80).print(slices_summary(evaluation()))
    assert "nothing to set apart" in stream.getvalue()


def test_the_best_known_adds_what_is_reached() -> None:
    row = next(line for line in printed(evaluation(), "hr@10", {"hr@10": 0.0752}).splitlines() if "HR@10" in line)
    assert row.split() == ["HR@10", "0.0702", "0.0093", "7.55×", "0.0752", "93%"]


def test_validation_stands_in_for_a_missing_test() -> None:
    assert "Validation, 22,363 users" in printed(evaluation("validation"))


def test_brackets_in_a_value_are_text() -> None:
    result = evaluation()
    result["test"]["protocol"] = {"ks": [1, 5], "note": "[red]not markup[/red]"}
    text = printed(result)
    assert "[1, 5]" in text
    assert "[red]not markup[/red]" in text


def test_nothing_evaluated_is_refused() -> None:
    with pytest.raises(DataError, match="run `genrec evaluate RUN` first"):
        console_summary({})
