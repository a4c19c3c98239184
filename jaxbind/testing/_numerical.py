"""Numerical derivatives with an error estimate.

Central differences D(h) = (f(x+hv) - f(x-hv)) / 2h over a ladder of steps, extrapolated to h = 0
(Richardson 1911; Ridders 1982, "Accurate computation of F'(x) and F'(x)F''(x)"). The error of
an extrapolated value is estimated from its neighbours on *both* sides of the ladder and from the
noise of f, which is measured beside x (in the spirit of Moré and Wild 2011, "Estimating
computational noise"), not assumed. One-sided differences tell kinks: F(h) - B(h) goes to zero with
h where f is smooth, and to the jump of the slope where it has a kink.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RATIO = 3.62  # no integer: rounded functions would agree with themselves by chance
SAMPLES = np.array([-3.7, -2.6, -1.4, -0.5, 0.6, 1.5, 2.5, 3.8])


@dataclass(frozen=True)
class Derivative:
    """A directional derivative, element by element.

    Attributes:
      value: the estimate (NaN where there is none).
      error: its estimated error (infinite where there is none).
      jump: how far the slopes from left and right differ at most; near 0 where f is smooth.
      kinked: where they differ by more than the steps and the noise of f explain.
      constant: where f has one value at all steps.
      scale: the size of f's values there, and close by.
      steps: the ladder, relative to the direction.
      ladder: D(h) for each step, ``(len(steps), size)``.
    """

    value: np.ndarray
    error: np.ndarray
    jump: np.ndarray
    kinked: np.ndarray
    constant: np.ndarray
    scale: np.ndarray
    steps: np.ndarray
    ladder: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Where the estimate is good enough to judge a rule by it."""
        return self.known_to(1e-3)

    def known_to(self, rtol: float) -> np.ndarray:
        """Where it is good to a part of the size of derivative or function."""
        size = np.maximum(np.abs(self.value), self.scale)
        return np.isfinite(self.value) & (self.error <= rtol * size)


def directional(
    function: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    v: np.ndarray,
    eps: float,
    start: float = 0.25,
    noise: np.ndarray | float = 0.0,
) -> Derivative:
    """The derivative of ``function`` (of vectors, in vectors) at ``x`` along ``v``.

    Args:
      eps: the machine epsilon of what the function computes in.
      start: the longest step, in units of ``v``, which should be as long as ``x``'s scale.
      noise: of the function's values, at least.
    """
    count = max(6, int(np.ceil(-np.log(np.sqrt(eps)) / np.log(RATIO))) + 1)
    steps = start * RATIO ** -np.arange(count)
    with np.errstate(all="ignore"):
        middle = function(x)
        plus = np.stack([function(x + h * v) for h in steps])
        minus = np.stack([function(x - h * v) for h in steps])
        column = steps[:, None]
        central = (plus - minus) / (2 * column)
        second = (plus - 2 * middle + minus) / column
        size = np.maximum(np.abs(plus), np.abs(minus))
        found = np.maximum(_noise(function, x, v, eps), noise)
        floor = np.maximum(found, 2 * eps * size) / column
        value, error, chosen = _extrapolated(central, floor)
        jump, kinked, rough = _jump(second, floor, chosen, value)
        error = np.maximum(error, _apart_nearby(central, value, 10 * (floor + error), chosen))
        error = np.where(rough, np.inf, error)
        beside = size[len(size) // 2]  # where f itself is zero, its values close by
        scale = np.maximum(np.abs(middle), np.where(np.isfinite(beside), beside, 0.0))
        constant = np.all((plus == middle) & (minus == middle), axis=0)
    return Derivative(value, error, jump, kinked, constant, scale, steps, central)


def _noise(
    function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, v: np.ndarray, eps: float
) -> np.ndarray:
    """The scatter of ``function`` around a parabola, within some roots of epsilon of ``x``."""
    t = 8 * np.sqrt(eps) * SAMPLES
    values = np.stack([function(x + s * v) for s in t])
    basis = np.vander(SAMPLES, 3)
    projected = basis @ (np.linalg.pinv(basis) @ np.where(np.isfinite(values), values, 0.0))
    scatter = np.max(np.abs(values - projected), axis=0)
    return np.where(np.isfinite(scatter), scatter, np.inf)


def _extrapolated(
    central: np.ndarray, floor: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all extrapolated values the one that agrees best with both its neighbours.

    Also its estimated error, and the finest step of the ladder that it uses.
    """
    best = np.full(central.shape[1], np.nan)
    error = np.full(central.shape[1], np.inf)
    chosen = np.zeros(central.shape[1], int)
    column, power = central, 1.0
    for order in range(4):
        if order:
            power *= RATIO**2
            column = (power * column[1:] - column[:-1]) / (power - 1)
        for k in range(1, len(column) - 1):
            neighbours = np.abs(column[k - 1 : k + 2] - column[k])
            # the noise of the finest difference that was used
            total = np.max(neighbours, axis=0) + 4 * floor[k + 1 + order]
            better = total < error  # False for NaN
            best = np.where(better, column[k], best)
            error = np.where(better, total, error)
            chosen = np.where(better, k + order, chosen)
    return best, error, chosen


def _apart_nearby(
    central: np.ndarray, value: np.ndarray, noise: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    """How far the differences of shorter steps are from the estimate, if they do not come closer.

    The function has a straight piece there that does not reach ``x`` itself; or it cancels at
    ``x``, and its noise, which comes from the rounding of ``x``, is larger than it looks.
    """
    apart = np.abs(central - value)
    at = np.take_along_axis(apart, chosen[None], axis=0)
    finer = np.arange(len(central))[:, None] > chosen
    return np.max(np.where(finer & (apart > 2 * at + noise), apart, 0.0), axis=0)


def _jump(
    second: np.ndarray, floor: np.ndarray, chosen: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The limit of F(h) - B(h), where it is not zero, and where the chosen step is too long.

    A kink keeps its jump, however short the step. If it is there at the chosen step only, the
    step is longer than what f does beside x (a narrow peak), and tells nothing.
    """
    limits = np.abs(RATIO * second[1:] - second[:-1]) / (RATIO - 1)
    noise = 8 * floor[1:]
    bound = np.where(np.isfinite(limits), limits + noise, np.inf)
    each = np.arange(second.shape[1])
    surest = (np.argmin(bound, axis=0), each)
    least = np.where(np.isfinite(bound[surest]), bound[surest], 0.0)
    # of a smooth f the next limit is RATIO**3 times smaller, and would have been surer
    kinked = limits[surest] > 3 * noise[surest]
    at = (np.minimum(chosen, len(limits) - 1), each)
    there = limits[at]
    uneven = (there > 0.3 * np.abs(second[1:][at])) & (there > 1e-3 * np.abs(value))
    return least, kinked, uneven & (there > 4 * noise[at]) & (least < 0.5 * there)
