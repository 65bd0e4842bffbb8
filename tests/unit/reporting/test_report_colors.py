"""The colours of the charts: seen against the ground, and told apart by any kind of colour vision."""

import re
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from genrec.reporting.page import TEMPLATES
from genrec.reporting.plots import SERIES

Floats = npt.NDArray[np.float64]

# Machado, Oliveira and Fernandes, 2009: linear RGB as it looks with one kind of cone missing.
VISION: dict[str, list[list[float]]] = {
    "full": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def colors(scheme: str) -> dict[str, Floats]:
    """Linear RGB of the custom properties of one scheme."""
    text = (TEMPLATES / "page.css").read_text()
    dark = text.index("prefers-color-scheme: dark")
    found = re.findall(r"--([\w-]+): #([0-9a-f]{6});", text[dark:] if scheme == "dark" else text[:dark])
    return {name: linear(code) for name, code in found}


def linear(code: str) -> Floats:
    values = np.array([int(code[place : place + 2], 16) for place in (0, 2, 4)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(first: Floats, second: Floats) -> float:
    """The ratio of WCAG 2: 1 is alike, 21 is black on white."""
    dark, light = sorted(float(TO_XYZ[1] @ color) + 0.05 for color in (first, second))
    return light / dark


def lab(color: Floats, vision: str) -> Floats:
    """CIE Lab of a linear colour as one kind of vision sees it."""
    xyz = TO_XYZ @ np.clip(np.array(VISION[vision]) @ color, 0, 1) / WHITE
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_and_texts_have_contrast(scheme: str) -> None:
    found = colors(scheme)
    for place in range(1, len(SERIES) + 1):
        assert contrast(found[f"series-{place}"], found["ground"]) >= 2.99, place
    for name in ("ink", "muted", "accent", "warning"):
        assert contrast(found[name], found["ground"]) >= 4.5, name
    assert contrast(found["warning-soft"], found["ink"]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_any_eye_tells_the_colors_apart(scheme: str, vision: str) -> None:
    found = colors(scheme)
    seen = [lab(found[f"series-{place}"], vision) for place in range(1, len(SERIES) + 1)]
    closest = min(float(np.linalg.norm(first - second)) for first, second in combinations(seen, 2))
    # 2.3 is a difference that is just noticed; tritanopia is rarer than the others by a factor of a hundred
    assert closest > (15 if vision == "tritanopia" else 20)
