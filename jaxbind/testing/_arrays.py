"""Strategies of numbers and of arrays of them, and values of strategies."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy

from jaxbind.testing._compare import is_complex

#: Hypothesis' complaints about slow or narrow strategies, which are not ours to make
EVERYTHING: Any = list(HealthCheck)

# Strategies are made once and of named functions: Hypothesis looks into lambdas, which takes time.


@cache
def numbers(dtype: np.dtype, magnitude: float) -> SearchStrategy:
    """Numbers up to ``magnitude``: small integers, and fractions with all digits."""
    if dtype == np.dtype(bool):
        return st.booleans()
    if dtype.kind == "u":
        return st.integers(0, 9)
    if dtype.kind == "i":
        return st.integers(-9, 9)
    if is_complex(np.zeros((), dtype)):
        real = numbers(np.dtype(float), magnitude)
        return st.builds(lambda im, re: complex(re, im), real, real)  # 1 is simpler than 1j
    whole = st.integers(-3, 3).map(float)
    fraction = st.integers(0, 2**32 - 1).map(partial(_scattered, magnitude))
    return st.one_of(whole, fraction, fraction)


def _scattered(magnitude: float, k: int) -> float:
    """Spread integers, which Hypothesis prefers small and alike, over the whole interval."""
    return magnitude * ((k * 2654435761 % 2**32) / 2**31 - 0.99999)


#: of numbers that are drawn by default
MAGNITUDES = (2.0, 10.0, 2.0, 1e3)


@st.composite
def arrays_of(
    draw: Callable,
    dtype: np.dtype,
    shape: tuple,
    elements: SearchStrategy | None,
    magnitude: float | None,
) -> np.ndarray:
    """An array of the given numbers, somehow laid out in memory."""
    if elements is None:
        magnitude = magnitude or draw(st.sampled_from(MAGNITUDES))
        elements = numbers(dtype, magnitude if dtype.itemsize >= 4 else 10.0)
    values = [draw(elements) for _ in range(int(np.prod(shape)))]
    array = np.array(values).astype(dtype).reshape(shape)
    return laid_out(array, draw(_LAYOUTS)) if shape else array


_LAYOUTS = st.sampled_from(("C", "C", "F", "reversed", "strided"))


def laid_out(array: np.ndarray, how: str) -> np.ndarray:
    """The same values in other places of the memory."""
    if how == "F":
        return np.asfortranarray(array)
    if how == "reversed":
        return array[::-1].copy()[::-1]
    if how == "strided":
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    return array


def samples(strategy: SearchStrategy, count: int, seed: int = 0) -> list[Any]:
    """The first few values of a strategy."""
    found: list[Any] = []

    def collect() -> None:
        @hypothesis.seed(seed)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=EVERYTHING,
        )
        @hypothesis.given(strategy)
        def each(value: Any) -> None:
            found.append(value)

        each()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unnested(collect)
    return found


def unnested(search: Callable[[], Any]) -> None:
    """Run a search of ours; in another thread where Hypothesis is at work already."""
    if not hypothesis.currently_in_test_context():
        search()
        return
    raised: list[BaseException] = []

    def run() -> None:
        try:
            search()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
