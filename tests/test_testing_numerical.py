"""Numerical derivatives: the error that is estimated is the error that is made."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.special
from hypothesis import assume, given

from jaxbind.testing._numerical import RATIO, Derivative, directional

DOUBLE = float(np.finfo(np.float64).eps)
SINGLE = float(np.finfo(np.float32).eps)

SMOOTH = {
    "line": (lambda x: 3 * x - 2, lambda x: 3 + 0 * x),
    "cube": (lambda x: x**3, lambda x: 3 * x**2),
    "high power": (lambda x: x**21, lambda x: 21 * x**20),
    "sine": (np.sin, np.cos),
    "exponential": (np.exp, np.exp),
    "tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    "bell": (lambda x: np.exp(-(x**2)), lambda x: -2 * x * np.exp(-(x**2))),
    "error function": (scipy.special.erf, lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2))),
    "steep": (lambda x: np.exp(20 * x), lambda x: 20 * np.exp(20 * x)),
    "oscillating": (lambda x: np.sin(40 * x), lambda x: 40 * np.cos(40 * x)),
    "chirp": (lambda x: np.sin(x**3), lambda x: 3 * x**2 * np.cos(x**3)),
    "flat": (lambda x: 1 + 1e-6 * np.sin(x), lambda x: 1e-6 * np.cos(x)),
    "constant": (lambda x: 7 + 0 * x, lambda x: 0 * x),
    "on a pedestal": (lambda x: 1e8 + np.cos(x), lambda x: -np.sin(x)),
    "large": (lambda x: 1e200 * np.sin(x), lambda x: 1e200 * np.cos(x)),
    "small": (lambda x: 1e-200 * np.sin(x), lambda x: 1e-200 * np.cos(x)),
    "resonance": (lambda x: 1 / (1 + 100 * x**2), lambda x: -200 * x / (1 + 100 * x**2) ** 2),
    "bessel": (scipy.special.j0, lambda x: -scipy.special.j1(x)),
    "cancellation": (lambda x: (1 + x) ** 2 - 1 - 2 * x, lambda x: 2 * x),
}
POSITIVE = {
    "logarithm": (np.log, lambda x: 1 / x),
    "root": (np.sqrt, lambda x: 0.5 / np.sqrt(x)),
    "reciprocal": (lambda x: 1 / x, lambda x: -1 / x**2),
    "power": (lambda x: x**0.3, lambda x: 0.3 * x**-0.7),
    "x log x": (lambda x: x * np.log(x), lambda x: np.log(x) + 1),
    "gamma": (scipy.special.gammaln, scipy.special.psi),
}


def at(x, function, eps=DOUBLE, v=None, start=0.25):
    """The derivative at each of some points by itself, along their size (at least 1)."""
    x = np.atleast_1d(np.asarray(x, float))
    v = np.maximum(np.abs(x), 1.0) if v is None else np.broadcast_to(v, x.shape)
    with np.errstate(all="ignore"):
        return v, directional(function, x, v, eps, start)


def honest(found, exact, eps=DOUBLE):
    """Whether no known estimate is further off than ten times its estimated error."""
    rounding = 4 * eps * np.abs(exact)  # of the exact one
    return bool(np.all(~found.known | (np.abs(found.value - exact) <= 10 * found.error + rounding)))


def in_single(function):
    return lambda x: function(x.astype(np.float32)).astype(float)


# The estimated error ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMOOTH)
@given(x=st.lists(st.floats(-3, 3), min_size=1, max_size=50), start=st.floats(0.15, 0.3))
def test_error_is_not_underestimated(name, x, start):
    function, derivative = SMOOTH[name]
    v, found = at(x, function, start=start)
    assert honest(found, derivative(np.asarray(x)) * v)
    assert np.all(found.known | (np.abs(x) < 0.1))  # zeros are below


def test_stationary_zeros_are_known():
    _, found = at(0.0, np.square)
    assert found.known and found.value == 0


@pytest.mark.parametrize("name", POSITIVE)
@given(exponents=st.lists(st.floats(-6, 6), min_size=1, max_size=50))
def test_error_is_not_underestimated_beside_a_singularity(name, exponents):
    """Steps of the operand's own size stay within the domain, those of 1 leave it."""
    function, derivative = POSITIVE[name]
    x = 10 ** np.asarray(exponents)
    v, found = at(x, function, v=x)
    assert np.all(found.known)
    assert honest(found, derivative(x) * v)
    v, found = at(x, function)
    assert honest(found, derivative(x) * v)


NARROW = {name: pair for name, pair in SMOOTH.items() if name not in ("large", "small")}


@pytest.mark.parametrize("name", NARROW)
@given(x=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=50))
def test_error_is_not_underestimated_in_single_precision(name, x):
    function, derivative = NARROW[name]
    v, found = at(x, in_single(function), SINGLE)
    assert honest(found, derivative(np.asarray(x)) * v, SINGLE)
    if name in ("line", "sine", "exponential", "tanh", "error function", "bessel"):
        assert np.all(found.known)
        assert np.all(found.error <= 1e-2 * np.maximum(np.abs(found.value), found.scale))


@pytest.mark.parametrize("name", ["sine", "exponential", "tanh", "steep", "oscillating", "bell"])
@given(x=st.floats(-1, 1))
def test_estimates_are_sharp(name, x):
    """Far better than a plain difference: a wrong digit of a rule shows."""
    function, derivative = SMOOTH[name]
    v, found = at(x, function)
    size = np.maximum(np.abs(found.value), found.scale)
    assert found.error <= 1e-8 * size
    assert np.abs(found.value - derivative(np.asarray(x)) * v) <= 1e-9 * size


@given(
    matrix=st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=4),
    x=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    v=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
def test_vectors(matrix, x, v):
    """sin(A x) along v: cos(A x) * (A v), each element with an error of its own."""
    a, x, v = map(np.asarray, (matrix, x, v))
    found = directional(lambda y: np.sin(a @ y), x, v, DOUBLE)
    rounding = 1e-14 * np.sum(np.abs(a), axis=1) * (1 + np.max(np.abs(v)))
    gap = np.abs(found.value - np.cos(a @ x) * (a @ v))
    assert found.value.shape == found.error.shape == found.jump.shape == (len(a),)
    assert np.all(~found.known | (gap <= 10 * found.error + rounding))


def test_ladder():
    _, found = at([0.3, -2.0], np.sin)
    assert isinstance(found, Derivative)
    np.testing.assert_allclose(found.steps[:-1] / found.steps[1:], RATIO)
    assert found.steps[0] == 0.25
    assert found.steps[-1] < 10 * np.sqrt(DOUBLE)
    assert found.ladder.shape == (found.steps.size, 2)
    np.testing.assert_allclose(found.ladder[5], np.cos([0.3, -2.0]) * [1, 2], rtol=1e-5)
    np.testing.assert_allclose(found.scale, np.abs(np.sin([0.3, -2.0])), rtol=1e-4)
    _, coarse = at([0.3], in_single(np.sin), SINGLE)
    assert coarse.steps.size < found.steps.size  # shorter steps would show rounding alone


def test_numpy_settings_are_kept():
    with np.errstate(all="raise"):
        directional(np.log, np.asarray([0.1]), np.asarray([1.0]), DOUBLE)
        with pytest.raises(FloatingPointError):
            np.log(np.asarray([0.0]))


# Kinks and jumps ----------------------------------------------------------------------------------


@given(slopes=st.tuples(st.floats(-5, 5), st.floats(-5, 5)), x=st.floats(-3, 3))
def test_kink_at_the_point(slopes, x):
    """The jump of the slope; a rule may give either slope, or anything between."""
    left, right = slopes
    assume(abs(left - right) > 0.3)
    v, found = at(x, lambda y: np.where(y < x, left * (y - x), right * (y - x)) + np.cos(y - x))
    np.testing.assert_allclose(found.jump, abs(right - left) * v, rtol=0.1)
    assert np.all(found.kinked)
    middle = (left + right) / 2 * v
    assert np.all(np.abs(found.value - middle) <= 1e-6 * (np.abs(middle) + found.jump))
    for slope in slopes:
        assert np.all(np.abs(slope * v - found.value) <= 10 * found.error + found.jump)


@pytest.mark.parametrize(
    "function",
    [
        np.abs,
        lambda x: np.maximum(x, 0),
        lambda x: np.maximum(x, x**2),
        lambda x: np.abs(np.sin(x)),
    ],
    ids=["abs", "relu", "max", "abs of sine"],
)
def test_known_kinks(function):
    _, found = at(0.0, function)
    assert found.jump > 0.9 and found.kinked


@pytest.mark.parametrize("name", SMOOTH)
@given(x=st.floats(-3, 3))
def test_smooth_functions_have_no_kink(name, x):
    _, found = at(x, SMOOTH[name][0])
    size = np.maximum(np.abs(found.value), found.scale)
    assert found.jump <= 1e-6 * size + 10 * found.error


@given(x=st.floats(-3, 3), distance=st.floats(-0.2, 0.2))
def test_kink_beside_the_point(x, distance):
    """Near a kink the slope is that of this side, or nothing is known."""
    assume(abs(distance) > 1e-12)
    v, found = at(x, lambda y: np.abs(y - (x + distance)))
    exact = np.sign(x - (x + distance)) * v
    gap = np.abs(found.value - exact)
    assert np.all(~found.known | (gap <= 10 * found.error + found.jump + 1e-12 * np.abs(v)))


@given(x=st.floats(-3, 3), distance=st.floats(1e-4, 0.2))
def test_kink_far_enough_away_is_not_seen(x, distance):
    v, found = at(x, lambda y: np.maximum(y, x - distance))
    assert found.known
    np.testing.assert_allclose(found.value, v, rtol=1e-6)
    assert found.jump < 1e-6


@pytest.mark.parametrize("function", [np.floor, np.sign, np.heaviside], ids=lambda f: f.__name__)
def test_jump_at_the_point(function):
    """There is no derivative; nothing is claimed."""
    stepped = (lambda x: function(x, 0.5)) if function is np.heaviside else function
    _, found = at(0.0, stepped)
    assert not found.known or found.jump > 1e3


@given(x=st.floats(-3, 3))
def test_jump_beside_the_point(x):
    """Of a step function the derivative is zero, or nothing is known."""
    assume(1e-9 < x % 1 < 1 - 1e-9)
    _, found = at(x, np.floor)
    assert not found.known or np.abs(found.value) <= 10 * found.error + found.jump + 1e-12


# Noise, and values that are not finite --------------------------------------------------------------


@given(size=st.floats(-12, -1), seed=st.integers(0, 999))
def test_noise(size, seed):
    """Added noise makes the error larger, in proportion, or the derivative unknown."""
    rng = np.random.default_rng(seed)
    noise = 10.0**size
    _, found = at(rng.uniform(-3, 3, 30), lambda x: np.sin(x) + noise * rng.uniform(-1, 1, x.shape))
    assert np.all(found.error > noise / 10)
    assert np.all(~found.known | (found.error < 1e-2))


@given(seed=st.integers(0, 999))
def test_noise_is_not_taken_for_the_derivative(seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 3, 30)
    v, found = at(x, lambda x: np.sin(x) + 1e-7 * rng.uniform(-1, 1, x.shape))
    gap = np.abs(found.value - np.cos(x) * v)
    assert np.all(~found.known | (gap <= 10 * found.error))


@given(x=st.lists(st.floats(-3, 3), min_size=1, max_size=30))
def test_single_precision_inside(x):
    """It does not see the short steps; the error says so, although eps is that of doubles."""
    x = np.asarray(x)
    v, found = at(x, in_single(lambda x: np.exp(x / 2)))
    exact = np.exp(x / 2) * v / 2
    assert np.all(~found.known | (np.abs(found.value - exact) <= 10 * found.error))
    assert np.all(found.error > 1e-9)


def test_pure_noise_has_no_derivative():
    rng = np.random.default_rng(0)
    _, found = at(np.zeros(100), lambda x: rng.standard_normal(x.shape))
    assert not np.any(found.known)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@given(x=st.floats(0.3, 1))
def test_values_that_are_not_finite(bad, x):
    """At the point itself nothing is known; beside it, shorter steps are used."""
    _, found = at(x, lambda y: np.full_like(y, bad))
    assert not np.any(found.known)
    v, found = at(x, lambda y: np.where(y < x - 0.1, bad, np.sin(y)))
    assert np.all(found.known)
    np.testing.assert_allclose(found.value, np.cos(x) * v, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_side_is_not_finite(bad):
    """At the edge of a domain there is no derivative."""
    _, found = at(0.0, lambda y: np.where(y < 0, bad, np.sin(y)))
    assert not np.any(found.known)


def test_elements_do_not_disturb_each_other():
    """One element is not finite, one has a kink, one is noisy: the last is as good as alone."""
    rng = np.random.default_rng(0)

    def function(x):
        return np.array([np.nan, abs(x[1]), x[2] + 0.1 * rng.standard_normal(), np.sin(x[3])])

    x = np.array([0.0, 0.0, 0.0, 0.7])
    found = directional(function, x, np.ones(4), DOUBLE)
    assert not found.known[0] and found.jump[1] > 1.9 and not found.known[2] and found.known[3]
    assert found.error[3] < 1e-9 and found.jump[3] < 1e-6
    assert abs(found.value[3] - np.cos(0.7)) < 1e-9
