"""The power law of a scaling sweep: loss = scale * parameters^-a * tokens^-b, with the intervals of both exponents.

A straight line in logarithms, by least squares; no floor of the loss is fitted, so exponents hold inside of the range
that was measured (Kaplan et al., 2020, have the same form; Hoffmann et al., 2022, one with a floor).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from genrec.evaluation.seeds import student_95
from genrec.reporting.history import Floats

NAMES = ("parameters", "tokens")


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """`exponents` by name, each with its 95% interval: negative where more of it lowers the loss."""

    log_scale: float
    exponents: dict[str, tuple[float, float, float]]
    r_squared: float
    num_points: int
    covariance: Floats
    """Of the logarithm of the scale and the exponents, [1 + exponents, 1 + exponents]."""
    quantile: float
    """The two-sided 95% point of Student's t for the degrees of freedom that are left."""

    def loss(self, values: dict[str, float]) -> float:
        """The loss that the law says for so many parameters and tokens."""
        powers = sum(exponent * np.log(values[name]) for name, (exponent, _, _) in self.exponents.items())
        return float(np.exp(self.log_scale + powers))

    def band(self, values: dict[str, float]) -> tuple[float, float]:
        """The 95% interval of the law's own loss there: of the line, not of a further trial, which scatters more."""
        place = np.array([1.0, *(np.log(values[name]) for name in self.exponents)])
        half = self.quantile * math.sqrt(max(float(place @ self.covariance @ place), 0.0))
        return self.loss(values) * math.exp(-half), self.loss(values) * math.exp(half)


def fit_power_law(parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> PowerLaw | None:
    """The law through points (parameters, tokens, loss), over whichever of the two varies.

    None where neither does, a number is not positive, or there are fewer than two points more than unknowns.
    """
    columns = np.array([parameters, tokens], dtype=float)
    loss = np.array(losses, dtype=float)
    if not len(loss) or (columns <= 0).any() or not (np.isfinite(loss) & (loss > 0)).all():
        return None
    logs = np.log(columns)
    varying = [index for index in range(2) if np.ptp(logs[index]) > 1e-3]
    design: Floats = np.column_stack([np.ones(len(loss)), *(logs[index] for index in varying)])
    degrees = len(loss) - design.shape[1]
    if not varying or degrees < 2 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    target = np.log(loss)
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    residuals = target - design @ solution
    variance = float(residuals @ residuals) / degrees
    covariance = variance * np.linalg.inv(design.T @ design)
    spread = float(((target - target.mean()) ** 2).sum())
    half = student_95(degrees) * np.sqrt(np.diag(covariance))
    return PowerLaw(
        log_scale=float(solution[0]),
        exponents={
            NAMES[index]: (
                float(solution[place]),
                float(solution[place] - half[place]),
                float(solution[place] + half[place]),
            )
            for place, index in enumerate(varying, start=1)
        },
        r_squared=1 - float(residuals @ residuals) / spread if spread > 0 else 1.0,
        num_points=len(loss),
        covariance=covariance,
        quantile=student_95(degrees),
    )
