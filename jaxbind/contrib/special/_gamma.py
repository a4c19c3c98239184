"""The gamma function and its kin: DLMF chapters 5, 8 and 25.

Incomplete functions are differentiated with respect to their last argument: with respect to the
parameters there is no closed form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxbind.contrib.special._elementary import xlog1py, xlogy
from jaxbind.contrib.special._table import integers, promote_dtypes, real_only, special

SHAPE, UNIT = (0.3, 15), (0.05, 0.95)

# Gamma and digamma ------------------------------------------------------------------------------

PSI = "DLMF 5.2.2"

gamma = special(
    "gamma", lambda z: gamma(z) * psi(z), source=PSI, domain=((-4.3, 8),), analytic=True
)
gammaln = special("gammaln", lambda x: psi(x), source=PSI, domain=((-4.3, 20),))
loggamma = special("loggamma", lambda z: psi(z), source=PSI, domain=(SHAPE,), analytic=True)
gammasgn = special("gammasgn", jnp.zeros_like, source="constant between poles", domain=((-5, 5),))


def _rgamma(z):
    """-psi(z)/Γ(z); left of 1/2 reflected (DLMF 5.5.3 and 5.5.4), where that has no poles."""
    left = jnp.real(z) < 0.5
    right, mirrored = jnp.where(left, 1.0, z), 1 - jnp.where(left, z, 0.0)
    turn = np.pi * jnp.where(left, z, 0.0)
    reflected = jnp.cos(turn) - jnp.sin(turn) * psi(mirrored) / np.pi
    return jnp.where(left, gamma(mirrored) * reflected, -psi(right) * rgamma(right))


rgamma = special(
    "rgamma", _rgamma, source="DLMF 5.2.2, 5.5.3, 5.5.4", domain=((-5, 8),), analytic=True
)


def _trigamma(z):
    real_only("psi' (the derivative of digamma)", z)
    return polygamma(1, z)


psi = special("psi", _trigamma, source="DLMF 5.15", domain=((-4.3, 20),))
digamma = special("digamma", _trigamma, source="DLMF 5.15", domain=((-4.3, 20),))
polygamma = special(
    scipy.special.polygamma,
    None,
    lambda n, x: polygamma(n + 1, x),
    source="DLMF 5.15",
    domain=(integers(0, 5), SHAPE),
    signature="(),()->()",
)


SHIFT = 16  # from here on the five terms of `_psi_beyond` are exact to rounding


def _psi_beyond(a, b):
    """psi(a + b) - psi(a), without cancellation where both arguments are positive.

    By the recurrence and the asymptotic series (DLMF 5.5.2 and 5.11.2).
    """
    positive = (a > 0) & (a + b > 0)
    near, apart = jnp.where(positive, a, 1), jnp.where(positive, b, 0)
    total = sum(apart / (near + k) / (near + apart + k) for k in range(SHIFT))
    near = near + SHIFT
    other = near + apart
    u, v = 1 / near**2, 1 / other**2
    powers = 1 / 12 - (u + v) / 120 + (u**2 + u * v + v**2) / 252
    powers += -(u + v) * (u**2 + v**2) / 240
    powers += (u**4 + v * (u**3 + v * (u**2 + v * (u + v)))) / 132
    total += jnp.log1p(apart / near) + apart / other / near / 2
    total += apart / other * ((near + other) / near) / near / other * powers
    a, b = jnp.where(positive, 1, a), jnp.where(positive, 0, b)
    return jnp.where(positive, total, psi(a + b) - psi(a))


def _slope_at_zero(upper, lower):
    """That of ``Γ(upper) / Γ(lower)`` where lower is 0 or a negative integer, with all of its own.

    The first term is 0 there, and its slope is not.
    """
    return gamma(upper) * (psi(upper) * rgamma(lower) + _rgamma(lower))


def _slope_of_quotient(value, upper, lower, apart, factor=1.0):
    """The derivative of ``value = factor Γ(upper) / Γ(lower)`` in both together.

    Where one or both are infinite: by 1/Γ, or reflected (DLMF 5.5.4). ``apart`` is their difference
    before it was rounded.
    """
    (no_upper, above), (no_lower, below) = _pole(upper), _pole(lower)
    reflected = psi(1 - jnp.where(no_upper, upper, 0)) - psi(1 - jnp.where(no_lower, lower, 0))
    at_zero = factor * _slope_at_zero(above, jnp.where(no_lower, lower, 0))
    at_pole = jnp.where(no_upper, value * reflected, at_zero)
    infinite = psi(jnp.where(no_lower, 1, upper)) - psi(below)
    regular = jnp.where(no_upper, infinite, _psi_beyond(below, apart))
    return jnp.where(no_lower, at_pole, value * regular)


poch = special(
    "poch",
    lambda z, m: _slope_of_quotient(poch(z, m), z + m, z, m),
    lambda z, m: poch(z, m) * psi(z + m),
    source="DLMF 5.2.5 and 5.2.2",
    domain=((0.3, 8), (0.1, 6)),
)

# Beta -------------------------------------------------------------------------------------------

BETA = "DLMF 5.12.1 and 5.2.2"


def _beta_in_first(a, b):
    """By 1/Γ where a + b is 0 or a negative integer."""
    (zero, _), together = _pole(a + b), jnp.broadcast_arrays(a, b)
    first, second = (jnp.where(zero, x, 0.5) for x in together)
    at_zero = gamma(second) * _slope_at_zero(first, first + second)
    a, b = (jnp.where(zero, 0.5, x) for x in together)
    return jnp.where(zero, at_zero, -beta(a, b) * _psi_beyond(a, b))


beta = special(
    "beta",
    lambda a, b: _beta_in_first(a, b),
    lambda a, b: _beta_in_first(b, a),
    source=BETA,
    domain=(SHAPE, SHAPE),
)
betaln = special(
    "betaln",
    lambda a, b: -_psi_beyond(a, b),
    lambda a, b: -_psi_beyond(b, a),
    source=BETA,
    domain=(SHAPE, SHAPE),
)


def _binom_in_x(x, y):
    return _slope_of_quotient(binom(x, y), x + 1, x - y + 1, y, rgamma(y + 1))


def _binom_in_y(x, y):
    (no_x, above), (no_y, lower), (no_rest, rest) = _pole(x + 1), _pole(y + 1), _pole(x - y + 1)
    turned = _rgamma(y + 1) * rgamma(x - y + 1) - rgamma(y + 1) * _rgamma(x - y + 1)
    at_zero = jnp.where(no_x, jnp.nan, gamma(above) * turned)
    return jnp.where(no_y | no_rest, at_zero, binom(x, y) * (psi(rest) - psi(lower)))


binom = special(
    "binom",
    _binom_in_x,
    _binom_in_y,
    source="DLMF 1.2.6, 5.2.2 and 5.5.4",
    domain=((6, 12), (0.1, 5)),
)

# Incomplete gamma functions ---------------------------------------------------------------------

INCOMPLETE_GAMMA = "DLMF 8.8.13"


def gamma_density(a, x):
    """x^(a-1) exp(-x) / Γ(a)"""
    return _gamma_density(*jnp.broadcast_arrays(*promote_dtypes(a, x)))


@jax.custom_jvp
def _gamma_density(a, x):
    """For large shapes by what is left of Stirling's formula: the logarithms cancel."""
    (pole, a), end = _pole(a), jnp.isposinf(x)
    x = jnp.where(end, 1, x)
    large = a > LARGE
    small = gammasgn(a) * jnp.exp(xlogy(a - 1, x) - x - gammaln(a))
    a, y = jnp.where(large, a, LARGE), jnp.where(large & (x != 0), x, 1)
    stirling = jnp.sqrt(a / (2 * np.pi)) * jnp.exp(-a * _deviance((y - a) / a) - _stirling(a)) / y
    return jnp.where(pole | end, 0, jnp.where(large & (x != 0), stirling, small))


LARGE = 50  # from here on the four terms of `_stirling` are exact to rounding


def _stirling(a):
    """log Γ(a) - (a - 1/2) log a + a - log(2π)/2 (DLMF 5.11.1)"""
    return (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * a**2)) / a**2) / a**2) / a


def _deviance(excess):
    """r - 1 - log r for r = 1 + excess."""
    near = jnp.abs(excess) < 1e-4
    small = jnp.where(near, excess, 0)
    series = small**2 * (1 / 2 - small * (1 / 3 - small * (1 / 4 - small / 5)))
    return jnp.where(near, series, excess - jnp.log1p(excess))


@_gamma_density.defjvp
def _(primals, tangents):
    a, x = primals
    density, end, far = _gamma_density(a, x), x == 0, jnp.isposinf(x)
    x = jnp.where(far, 1, x)
    inner = jnp.where(end, 1, x)
    inside = jnp.where(far, 0, _gamma_density(a, inner) * ((a - 1) / inner - 1))
    at_end = _gamma_density(a - 1, x * end) - _gamma_density(a, x * end)
    in_a = xlogy(density, x) - density * psi(a)
    return density, _along(tangents[0], in_a) + jnp.where(end, at_end, inside) * tangents[1]


def _along(tangent, slope):
    """Their product; a slope in a shape is infinite at the ends, where that may not move."""
    still = tangent == 0
    return jnp.where(still, 0, jnp.where(still, 0, slope) * tangent)


def _pole(a):
    """Where Γ(a) is infinite, and ``a`` without such places."""
    pole = (a <= 0) & (a == jnp.round(a))
    return pole, jnp.where(pole, 1, a)


gammainc = special(
    "gammainc",
    None,
    lambda a, x: gamma_density(a, x),
    source=INCOMPLETE_GAMMA,
    domain=(SHAPE, (0.1, 20)),
)
gammaincc = special(
    "gammaincc",
    None,
    lambda a, x: -gamma_density(a, x),
    source=INCOMPLETE_GAMMA,
    domain=(SHAPE, (0.1, 20)),
)
gammaincinv = special(
    "gammaincinv",
    None,
    lambda a, y: 1 / gamma_density(a, gammaincinv(a, y)),
    source=INCOMPLETE_GAMMA,
    domain=(SHAPE, UNIT),
)
gammainccinv = special(
    "gammainccinv",
    None,
    lambda a, y: -1 / gamma_density(a, gammainccinv(a, y)),
    source=INCOMPLETE_GAMMA,
    domain=(SHAPE, UNIT),
)

# Incomplete beta functions ----------------------------------------------------------------------

INCOMPLETE_BETA = "DLMF 8.17.1"


def beta_density(a, b, x, rest=None):
    """x^(a-1) (1-x)^(b-1) / B(a, b); ``rest`` is 1 - x, where more of its digits are known."""
    rest = 1 - x if rest is None else rest
    return _beta_density(*jnp.broadcast_arrays(*promote_dtypes(a, b, x, rest)))


@jax.custom_jvp
def _beta_density(a, b, x, rest):
    (no_a, a), (no_b, b) = _pole(a), _pole(b)
    sign = gammasgn(a) * gammasgn(b) * gammasgn(a + b)
    # of the two the logarithm of the smaller one tells the other's
    of_x = jnp.where(x < 0.5, xlogy(a - 1, x), xlog1py(a - 1, -rest))
    of_rest = jnp.where(x < 0.5, xlog1py(b - 1, -x), xlogy(b - 1, rest))
    small = sign * jnp.exp(of_x + of_rest - betaln(a, b))
    large = (a > LARGE) & (b > LARGE) & (x > 0) & (rest > 0)
    a, b = jnp.where(large, a, LARGE), jnp.where(large, b, LARGE)
    y, rest = jnp.where(large, x, 0.5), jnp.where(large, rest, 0.5)
    exponent = -a * _deviance(((a + b) * y - a) / a) - b * _deviance(((a + b) * rest - b) / b)
    exponent += _stirling(a + b) - _stirling(a) - _stirling(b)
    root = jnp.sqrt(a / (a + b) * b / (2 * np.pi))
    stirling = root * jnp.exp(exponent) / (y * rest)
    return jnp.where(no_a | no_b, 0, jnp.where(large, stirling, small))


@_beta_density.defjvp
def _(primals, tangents):
    a, b, x, rest = primals
    density, end = _beta_density(a, b, x, rest), (x == 0) | (rest == 0)
    inner, inner_rest = jnp.where(end, 0.5, x), jnp.where(end, 0.5, rest)
    outer, outer_rest = jnp.where(end, x, 0), jnp.where(end, rest, 1)
    inside = _beta_density(a, b, inner, inner_rest)
    above = (a + b - 1) * _beta_density(a - 1, b, outer, outer_rest)
    below = (a + b - 1) * _beta_density(a, b - 1, outer, outer_rest)
    in_x = jnp.where(end, above, inside * (a - 1) / inner)
    in_rest = jnp.where(end, below, inside * (b - 1) / inner_rest)
    in_a = xlogy(density, x) + density * _psi_beyond(a, b)
    in_b = xlogy(density, rest) + density * _psi_beyond(b, a)
    by_shape = _along(tangents[0], in_a) + _along(tangents[1], in_b)
    return density, by_shape + in_x * tangents[2] + in_rest * tangents[3]


_OF_BETA = (SHAPE, SHAPE, UNIT)
betainc = special(
    "betainc",
    None,
    None,
    lambda a, b, x: beta_density(a, b, x),
    source=INCOMPLETE_BETA,
    domain=_OF_BETA,
)
betaincc = special(
    "betaincc",
    None,
    None,
    lambda a, b, x: -beta_density(a, b, x),
    source=INCOMPLETE_BETA,
    domain=_OF_BETA,
)
betaincinv = special(
    "betaincinv",
    None,
    None,
    lambda a, b, y: 1 / beta_density(a, b, betaincinv(a, b, y)),
    source=INCOMPLETE_BETA,
    domain=_OF_BETA,
)
betainccinv = special(
    "betainccinv",
    None,
    None,
    lambda a, b, y: -1 / beta_density(a, b, betainccinv(a, b, y)),
    source=INCOMPLETE_BETA,
    domain=_OF_BETA,
)

# Zeta -------------------------------------------------------------------------------------------


def _hurwitz(x, q=1):
    found = scipy.special.zeta(x, q)
    missing = np.isnan(found) & (q == 1)  # SciPy knows Riemann's function below 1, too
    return np.where(missing, scipy.special.zeta(x), found)


_hurwitz.__name__ = "zeta"
zeta = special(
    _hurwitz,
    None,
    lambda x, q: -x * zeta(x + 1, q),
    source="DLMF 25.11.17",
    domain=((1.5, 10), (0.2, 10)),
    signature="(),()->()",
)
