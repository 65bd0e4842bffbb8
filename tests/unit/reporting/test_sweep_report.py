"""The page of a sweep, and the numbers in it."""

import json
from pathlib import Path

import numpy as np
import pytest
from fabricated_sweep import trial, write_sweep_json
from html_page import Page

from genrec.errors import DataError
from genrec.reporting import sweep_sections
from genrec.reporting.sweep_charts import pareto, power_law, sweep_charts
from genrec.reporting.sweep_record import read_record
from genrec.reporting.sweep_report import write_sweep_report
from genrec.reporting.sweep_scaling import fit_power_law

TRIALS = [
    trial(0, {"optimizer.lr": 0.001, "model.name": "sasrec"}, 0.10, 0.12, intervals={"ndcg@10": [0.11, 0.13]}),
    trial(1, {"optimizer.lr": 0.01, "model.name": "hstu"}, 0.20, 0.30, 0.29, num_parameters=100, price=0.5),
    trial(2, {"optimizer.lr": 0.1, "model.name": "hstu"}, 0.05, state="stopped", progress={"worker_seconds": 20.0}),
    trial(3, {"optimizer.lr": 0.5, "model.name": "sasrec"}, state="failed", reason="loss is <nan> & so on"),
    trial(4, {"optimizer.lr": 0.3, "model.name": "sasrec"}, 0.15, 0.2, num_parameters=50),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sweep_json(tmp_path / "sweep", TRIALS, best=1, importances={"optimizer.lr": 0.8, "model.name": 0.2})


def test_the_page_is_whole_and_says_what_matters(folder) -> None:
    page = Page(write_sweep_report(folder).read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.texts).split())
    assert "made-up" in text
    assert "0.3000" in text and "0.1100 to 0.1300" in text
    assert "loss is <nan> & so on" in text  # escaped in the file, whole on the page
    assert "optimizer.lr 0.80" in text
    assert "1 stopped" in text
    assert not [link for link in page.all("a") if not (link["href"] or "").startswith("#")]
    assert not page.all("script") and not page.all("img")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_leaderboard_is_in_order_and_failed_trials_are_not_in_it(folder) -> None:
    record = read_record(folder)
    lines = sweep_sections.leaderboard(record)
    assert [line.name for line in lines] == ["0001", "0004", "0000", "0002"]
    assert lines[0].strong
    assert "2 of 3" in lines[0].cells  # its best was before its last validation
    assert [row.name for row in sweep_sections.losers(record)] == ["0003 failed"]


def test_what_stopping_saved_and_what_the_sweep_cost(folder) -> None:
    record = read_record(folder)
    assert record.worker_seconds == 500.0
    assert record.saved_worker_seconds() == 100.0  # 120 for a finished trial, 20 spent
    assert record.price == 0.5
    assert record.overhead == pytest.approx(0.1)  # 90 of every 100 seconds


def test_charts_of_an_empty_or_failed_sweep(tmp_path) -> None:
    failed = write_sweep_json(tmp_path / "failed", [TRIALS[3]])
    assert sweep_charts(read_record(failed)) == []
    assert "loss is" in write_sweep_report(failed).read_text(encoding="utf-8")
    Page(write_sweep_report(write_sweep_json(tmp_path / "empty", [])).read_text(encoding="utf-8"))


def test_a_folder_without_a_sweep_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="is not a sweep"):
        write_sweep_report(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        write_sweep_report(tmp_path)


def test_a_retraining_shows_the_winners_curse(folder) -> None:
    runs = [
        *(trial(n, {"seed": n}, value, group="base") for n, value in enumerate((0.11, 0.12, 0.13))),
        *(
            trial(n, {"optimizer.lr": 0.01, "seed": n}, value, group="0001", test={"ndcg@10": value - 0.02})
            for n, value in enumerate((0.24, 0.25, 0.26), start=3)
        ),
    ]
    write_sweep_json(folder / "retrained", runs)
    record = read_record(folder)
    base, best = record.groups()
    assert (base.group, base.selected, base.validation.num_seeds) == ("base", None, 3)
    assert best.selected == 0.3
    assert best.validation.mean == pytest.approx(0.25)
    assert best.validation.low == pytest.approx(0.25 - 4.303 * 0.01 / np.sqrt(3))
    assert best.test is not None and best.test.mean == pytest.approx(0.23)
    said = sweep_sections.verdict(record)
    assert "the intervals do not overlap" in said
    assert "0.0500 better than its mean over fresh seeds" in said
    assert "With fresh seeds" in write_sweep_report(folder).read_text(encoding="utf-8")


def test_where_the_base_is_the_best_the_verdict_says_so(folder) -> None:
    write_sweep_json(folder / "retrained", [trial(n, {"seed": n}, 0.1, group="base") for n in range(2)])
    assert "No trial was better than the base config, which reaches 0.1000" in sweep_sections.verdict(
        read_record(folder)
    )


def test_the_pairs_of_the_three_most_important_settings_are_drawn(tmp_path) -> None:
    trials = [trial(n, {"a.w": n % 3, "b.x": n, "c.y": n % 2, "d.z": -n}, 0.1 * n) for n in range(6)]
    importances = {"b.x": 0.5, "d.z": 0.3, "a.w": 0.15, "c.y": 0.05}
    titles = [
        chart.title for chart in sweep_charts(read_record(write_sweep_json(tmp_path, trials, importances=importances)))
    ]
    assert [title for title in titles if " and " in title] == ["b.x and d.z", "b.x and a.w", "d.z and a.w"]
    Page(write_sweep_report(tmp_path).read_text(encoding="utf-8"))


def test_values_with_odd_characters_are_shown_as_they_are(tmp_path) -> None:
    odd = ("$MAPS/x_$y^", "$A_{$", "<i>&", "bell\a")
    trials = [trial(n, {"semantic_ids.path": odd[n % 4], "b.x": n}, 0.1 * n) for n in range(8)]
    folder = write_sweep_json(tmp_path, trials, importances={"semantic_ids.path": 0.6, "b.x": 0.4})
    text = write_sweep_report(folder).read_text(encoding="utf-8")
    Page(text)
    assert text.count(">$MAPS/x_$y^<") >= 2, "in the table, and at an axis"
    assert "<i>" not in text


def test_overlapping_intervals_are_called_that(folder) -> None:
    runs = [
        trial(n, {"seed": n}, value, group=group)
        for n, (group, value) in enumerate([("base", 0.1), ("base", 0.3), ("0001", 0.2), ("0001", 0.35)])
    ]
    write_sweep_json(folder / "retrained", runs)
    assert "the intervals overlap, so more seeds are needed" in sweep_sections.verdict(read_record(folder))


def test_the_pareto_front_is_what_none_beats() -> None:
    points = [(1.0, 0.1), (2.0, 0.3), (3.0, 0.3), (4.0, 0.5), (1.0, 0.1)]
    assert pareto(points, [-1, 1]) == [0, 1, 3, 4]
    assert pareto(points, [1, 1]) == [3]


def test_a_power_law_is_found_again() -> None:
    generator = np.random.default_rng(0)
    parameters, tokens = np.meshgrid([1e5, 1e6, 1e7, 1e8], [1e7, 1e8, 1e9])
    true = 30 * parameters**-0.07 * tokens**-0.09
    noisy = true * np.exp(generator.normal(0, 0.01, true.shape))
    law = fit_power_law(parameters.ravel(), tokens.ravel(), noisy.ravel())
    for name, exponent in (("parameters", -0.07), ("tokens", -0.09)):
        found, low, high = law.exponents[name]
        assert low < exponent < high
        assert found == pytest.approx(exponent, abs=0.005)
        assert high - low < 0.02
    assert law.loss({"parameters": 1e6, "tokens": 1e8}) == pytest.approx(30 * 1e6**-0.07 * 1e8**-0.09, rel=0.02)
    assert law.r_squared > 0.99
    middle = {"parameters": 10**6.5, "tokens": 1e8}  # where the band is t * s / sqrt(n), and nowhere narrower
    points = zip(parameters.ravel(), tokens.ravel(), noisy.ravel(), strict=True)
    residuals = [np.log(loss / law.loss({"parameters": size, "tokens": seen})) for size, seen, loss in points]
    half = 2.262 * np.sqrt(np.square(residuals).sum() / 9 / 12)  # 12 points, 9 degrees of freedom
    assert law.band(middle) == pytest.approx([law.loss(middle) * np.exp(-half), law.loss(middle) * np.exp(half)])
    far = law.band({**middle, "parameters": 1e12})
    assert np.log(far[1] / far[0]) > 4 * half


def test_a_power_law_over_what_varies_and_none_without_enough_points() -> None:
    one = fit_power_law([1e5, 1e6, 1e7, 1e8], [1e6] * 4, [4.0, 3.0, 2.25, 1.69])
    assert set(one.exponents) == {"parameters"}
    assert fit_power_law([1e5, 1e6, 1e7], [1e6] * 3, [4.0, 3.0, 2.25]) is None
    assert fit_power_law([1e5] * 5, [1e6] * 5, [4.0] * 5) is None
    assert fit_power_law([1e5, 1e6, 1e7, 1e8], [1e6] * 4, [4.0, 3.0, float("nan"), 1.0]) is None


def test_a_scaling_sweep_shows_its_law(tmp_path) -> None:
    trials = []
    for number, size in enumerate((1e4, 1e5, 1e6, 1e7, 1e8)):
        made = trial(number, {"model.dim": number}, 0.0, metric="ndcg@10", num_parameters=int(size))
        made.best["loss"] = 10 * size**-0.1
        trials.append(made)
    folder = write_sweep_json(tmp_path, trials, metrics=["loss"], modes=["min"])
    record = read_record(folder)
    assert "Loss while training" not in [chart.title for chart in sweep_charts(record)]  # one validation is no curve
    law, _ = power_law(record)
    assert law.exponents["parameters"][0] == pytest.approx(-0.1)
    assert "exponent -0.100" in write_sweep_report(folder).read_text(encoding="utf-8")
    assert json.loads((folder / "sweep.json").read_text())["metrics"] == ["loss"]
