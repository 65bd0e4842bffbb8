"""The page of a run whose model writes codes says what its map is, and how healthy."""

import json
from pathlib import Path

import numpy as np
import pytest
from fabricated_run import complete_records, config_values, evaluation, write_run
from html_page import Page, check_accessible, check_self_contained

from genrec.errors import DataError
from genrec.reporting.run_report import write_report
from genrec.run_dir import RunDir
from genrec.semantic.health import Health, LevelHealth, NeighbourHealth
from genrec.semantic.ids import SemanticIds
from genrec.semantic.tokenize import write_health

HEALTH = Health(
    num_items=9,
    without_vector=0.0,
    collision_rate=0.2222,
    distinct=8,
    max_bucket=2,
    buckets={"1": 7, "2": 1},
    levels=(LevelHealth(3, 3, 1.58, 1.0), LevelHealth(3, 2, 0.9, 0.57)),
    reconstruction=(0.5, 0.25),
    neighbours=NeighbourHealth(2, 9, 0.61, (0.7, 0.3), (0.3, 0.1)),
    purity=None,
    purity_by_chance=None,
    final_sizes=(3, 3, 2),
    num_moved=1,
)


def map_of(num_items: int, *, earlier: SemanticIds | None = None) -> SemanticIds:
    codes = np.full((num_items + 1, 3), -1, dtype=np.int32)
    codes[1:] = np.stack(np.unravel_index(np.arange(num_items), (3, 3, 2)), axis=1)
    extensions = [] if earlier is None else [{"from_digest": earlier.digest, "num_new": num_items - earlier.num_items}]
    told = {"tokenizer": {"name": "rkmeans"}, "vectors": {"name": "tfidf"}, "collisions": "dedup", "accepted": []}
    return SemanticIds(codes, (3, 3, 2), f"{num_items} items", told | {"extensions": extensions})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run with its map in the export, and the map's folder."""
    values = config_values(model={"name": "tiger"}, semantic_ids={"path": str(tmp_path / "map")})
    run = write_run(tmp_path / "run", complete_records(), evaluated=evaluation(), config=values)
    map_of(9).save(run.export_path)
    map_of(9).save(tmp_path / "map")
    write_health(HEALTH, "map", (), tmp_path / "map")
    return run


def page_of(run: RunDir) -> Page:
    shown = Page(write_report(run).read_text(encoding="utf-8"))
    check_self_contained(shown)
    check_accessible(shown)
    return shown


def test_the_map_and_its_health_are_shown(run: RunDir) -> None:
    shown = page_of(run)
    sections = [attributes["id"] for attributes in shown.all("section")]
    assert sections[sections.index("codes") - 1] == "starts"
    for words in (
        "Levels 3 x 3 x 2 8 codes in all",
        "Tokenizer rkmeans",
        "Item vectors tfidf",
        "Collisions dedup",
        map_of(9).digest[:12],
        "Collision rate 22%",
        "Neighbours kept 61%",
        "2 3 2 67% 0.90 57% 0.25",
    ):
        assert words in shown.text


def test_a_map_that_has_grown_since_keeps_its_health(tmp_path: Path, run: RunDir) -> None:
    map_of(11, earlier=map_of(9)).save(tmp_path / "map")
    assert "Collision rate 22%" in page_of(run).text
    map_of(11, earlier=map_of(9)).save(run.export_path)  # a run that was trained afterwards
    shown = page_of(run)
    assert "before 2 items joined" in shown.text and "Items that joined 2" in shown.text


def test_the_health_of_another_map_is_not_shown(tmp_path: Path, run: RunDir) -> None:
    map_of(10).save(tmp_path / "map")
    text = page_of(run).text
    assert "health of this map is not at hand" in text and "Levels 3 x 3 x 2" in text
    assert "Collision rate" not in text


def test_before_the_export_and_without_any_map(tmp_path: Path, run: RunDir) -> None:
    (run.export_path / "map.json").unlink()
    assert "Collision rate 22%" in page_of(run).text
    (tmp_path / "map" / "map.json").unlink()
    assert "codes" not in [attributes["id"] for attributes in page_of(run).all("section")]


def test_damaged_health_is_named(tmp_path: Path, run: RunDir) -> None:
    (tmp_path / "map" / "health.json").write_text(json.dumps({"health": {"levels": 3}}))
    with pytest.raises(DataError, match=r"health\.json is damaged"):
        write_report(run)
