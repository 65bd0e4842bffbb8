"""Charts are themed by the page, name no outside address, and stay small however long the run is."""

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest

from genrec.reporting.plots import THEME, WARNING, Line, Marks, bucket, line_chart


def line(num_points: int) -> Line:
    steps = np.arange(num_points, dtype=np.float64)
    return Line(steps, np.sin(steps / 50))


def draw(*lines: Line, name: str = "loss", **options: object) -> str:
    return line_chart(name, lines, description="Loss & more <by step>", value_format=lambda v: f"{v:g}", **options)  # type: ignore[arg-type]


def test_a_short_curve_is_drawn_as_it_is() -> None:
    part = bucket(line(160), max_points=160)
    assert part.num_per_bucket == 1
    assert part.mean.tolist() == line(160).values.tolist()


def test_a_long_curve_becomes_means_and_ranges() -> None:
    whole = line(1_003)
    part = bucket(whole, max_points=100)
    assert part.num_per_bucket == 11
    assert len(part.mean) == 92
    assert part.mean[0] == pytest.approx(whole.values[:11].mean())
    assert part.positions[-1] == pytest.approx(whole.positions[1_001:].mean())
    assert part.low.min() == whole.values.min()
    assert part.high.max() == whole.values.max()


def test_points_that_are_not_finite_are_left_out() -> None:
    part = bucket(Line(np.array([1.0, 2.0, 3.0]), np.array([1.0, math.nan, math.inf])))
    assert part.positions.tolist() == [1.0]


def test_the_element_is_themed_named_and_self_contained() -> None:
    svg = draw(line(400), marks=Marks(restarts=(100, 200), best=(30.0, 0.5), not_finite=(5.0,)))
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "Loss & more <by step>"
    assert "http" not in svg
    assert not any(color in svg for color in THEME)
    assert "#000000" not in svg
    assert "var(--accent)" in svg
    assert "font-family" not in svg


def test_references_resolve_inside_the_chart_and_differ_between_charts() -> None:
    first, second = draw(line(400), name="loss"), draw(line(400), name="lr")
    for svg, name in ((first, "loss"), (second, "lr")):
        ids = re.findall(r' id="([^"]+)"', svg)
        references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
        assert references
        assert {a or b for a, b in references} <= set(ids)
        assert len(ids) == len(set(ids))
        assert all(identifier.startswith(f"{name}-") for identifier in ids)


def test_the_same_curve_gives_the_same_bytes() -> None:
    assert draw(line(50)) == draw(line(50))


def test_marks_are_drawn_only_when_there_are_any() -> None:
    warning = THEME[WARNING]
    assert warning in draw(line(50), marks=Marks(not_finite=(7.0,)))
    assert warning not in draw(line(50))
    dashed = "stroke-dasharray"
    assert dashed in draw(line(50), marks=Marks(restarts=(20,)))
    assert dashed not in draw(line(50))


def test_a_single_point_and_a_flat_line_at_zero_are_drawn() -> None:
    for single in (Line(np.array([10.0]), np.array([3.0])), Line(np.array([1.0, 2.0]), np.zeros(2))):
        assert ET.fromstring(draw(single)).tag == "svg"
        assert ET.fromstring(draw(single, from_zero=False)).tag == "svg"


def test_labels_of_curves_that_end_together_do_not_overlap() -> None:
    steps = np.array([1.0, 2.0])
    svg = draw(*(Line(steps, np.array([0.1, 0.5 + 0.001 * k]), label=f"curve{k}") for k in range(3)))
    heights = [float(y) for y in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>curve\d</text>', svg)]
    assert len(heights) == 3
    ordered = sorted(heights)
    assert min(b - a for a, b in pairwise(ordered)) > 12


def test_a_very_long_curve_stays_small() -> None:
    assert len(draw(line(200_000), marks=Marks(restarts=range(0, 200_000, 200)))) < 100_000
