"""The rows of a report: results, protocol, settings, environment, data and startup."""

from pathlib import Path

import pytest
from fabricated_run import PROTOCOL, config_values, evaluation, write_manifest

from genrec.config import config_from_dict
from genrec.data.manifest import load_manifest
from genrec.reporting import tables
from genrec.reporting.history import Start


def test_result_rows_stand_beside_popularity_and_the_best_known() -> None:
    rows = tables.result_rows(evaluation()["test"], "ndcg@10", {"hr@10": 0.0752})
    assert [row.metric for row in rows] == ["HR@1", "HR@10", "HR@50", "NDCG@10", "NDCG@50", "MRR@10"]
    hit_rate, ndcg = rows[1], rows[3]
    assert (hit_rate.model, hit_rate.popularity, hit_rate.ratio) == ("0.0702", "0.0093", "7.55×")
    assert (hit_rate.best_known, hit_rate.reached) == ("0.0752", "93%")
    assert (ndcg.best_known, ndcg.reached) == ("–", "–")
    assert [row.decisive for row in rows] == [False, False, False, True, False, False]


def test_result_rows_without_a_baseline() -> None:
    (row,) = tables.result_rows({"metrics": {"hr@10": 0.1}}, "hr@10", {})
    assert (row.model, row.popularity, row.ratio) == ("0.1000", "–", "–")


@pytest.mark.parametrize(
    ("card", "limits"),
    [
        ({"filter_seen": False, "uses_query_time": False}, {"hr@10": 0.3}),
        ({"filter_seen": False, "uses_query_time": True}, {"hr@10": 0.4}),
        ({"filter_seen": True, "uses_query_time": False}, {}),
    ],
)
def test_the_best_known_fits_the_protocol(card: dict[str, bool], limits: dict[str, float]) -> None:
    role = {"metrics": {"hr@10": 0.1, "hr@7": 0.1}, "protocol": card}
    assert tables.best_known_of(role, {"hr@10": 0.3, "hr@10/query-time": 0.4, "users": 9.0}) == limits


def test_every_line_of_the_protocol_card_is_explained() -> None:
    rows = tables.protocol_rows(PROTOCOL)
    assert len(rows) == len(PROTOCOL)
    assert all(row.hint for row in rows)
    values = {row.name: row.value for row in rows}
    assert values["Uses query time"] == "no"
    assert values["Number of users"] == "22,363"


def test_an_unknown_line_of_the_card_is_still_printed() -> None:
    (row,) = tables.protocol_rows({"new_rule": None})
    assert (row.name, row.value, row.hint) == ("New rule", "none", "")
    assert tables.protocol_rows(None) == []


def test_config_rows_tell_what_the_run_sets() -> None:
    groups = tables.config_groups(config_from_dict(config_values()))
    assert [group.title for group in groups[:3]] == ["run", "data", "sequence"]
    optimizer = next(group for group in groups if group.title == "optimizer")
    rows = {row.name: row for row in optimizer.rows}
    assert rows["warmup_steps"].changed
    assert not rows["lr"].changed  # set, but to the default
    assert all(row.hint for row in optimizer.rows if row.name != "name")  # the tag tells which kind it is
    changed = {row.name: row.value for row in tables.changed_rows(groups)}
    assert changed["name"] == "sasrec-beauty"
    assert changed["data.source.layout"] == "lists"
    assert changed["model.dropout"] == "0.5"
    assert "seed" not in changed


def test_any_environment_becomes_groups_of_facts() -> None:
    environment = {
        "commit": "4f1c9b2",
        "versions": {"torch": "2.13.0"},
        "hardware": {"gpus": [{"name": "H200", "bytes": 1}, {"name": "H200", "bytes": 2}], "cores": [0, 1]},
        "empty": {},
    }
    groups = tables.environment_groups(environment)
    assert [group.title for group in groups] == ["general", "versions", "hardware"]
    assert [(row.name, row.value) for row in groups[2].rows] == [
        ("gpus.0.name", "H200"),
        ("gpus.0.bytes", "1"),
        ("gpus.1.name", "H200"),
        ("gpus.1.bytes", "2"),
        ("cores", "[0, 1]"),
    ]
    assert tables.environment_groups({}) == []


def test_data_rows_count_the_prepared_set(tmp_path: Path) -> None:
    write_manifest(tmp_path / "prepared", {})
    rows = {row.name: row for row in tables.data_rows(load_manifest(tmp_path / "prepared"))}
    assert rows["Events"].value == "198,502"
    assert rows["Events"].hint == "153,776 in training"
    assert rows["Events per user"].value == "8.88"
    assert rows["Null item"].hint == "rows rejected"
    assert rows["Actions"].value == "stream, skip"


def test_phases_of_several_starts_share_their_rows() -> None:
    first = Start(0, 0.0, 2, "ray", False, {"imports": 8.0, "ray_start": 2.0}, 0)
    second = Start(9, 9.0, 2, "ray", True, {"imports": 3.0, "restore": 1.0}, 4)
    phases = tables.phase_rows([first, second])
    assert [phase.name for phase in phases] == ["Imports", "Ray start", "Restore", "Total"]
    assert phases[0].seconds == ("8 s", "3 s")
    assert phases[0].share == pytest.approx(75.0)
    assert phases[1].seconds == ("2 s", "–")
    assert phases[3].seconds == ("10 s", "4 s")
    assert tables.phase_rows([Start(0, 0.0, None, "", False, {}, 0)]) == []
