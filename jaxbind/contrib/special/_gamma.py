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


def _slope_of_quotient(value, upper, lower, factor=1.0):
    """The derivative of ``value = factor Γ(upper) / Γ(lower)`` in both together.

    Where one or both are infinite: by 1/Γ, or reflected (DLMF 5.5.4).
    """
    (no_upper, above), (no_lower, below) = _pole(upper), _pole(lower)
    reflected = psi(1 - jnp.where(no_upper, upper, 0)) - psi(1 - jnp.where(no_lower, lower, 0))
    at_zero = factor * gamma(above) * _rgamma(jnp.where(no_lower, lower, 1))
    at_pole = jnp.where(no_upper, value * reflected, at_zero)
    return jnp.where(no_lower, at_pole, value * (psi(upper) - psi(below)))


poch = special(
    "poch",
    lambda z, m: _slope_of_quotient(poch(z, m), z + m, z),
    lambda z, m: poch(z, m) * psi(z + m),
    source="DLMF 5.2.5 and 5.2.2",
    domain=((0.3, 8), (0.1, 6)),
)

# Beta -------------------------------------------------------------------------------------------

BETA = "DLMF 5.12.1 and 5.2.2"

beta = special(
    "beta",
    lambda a, b: beta(a, b) * (psi(a) - psi(a + b)),
    lambda a, b: beta(a, b) * (psi(b) - psi(a + b)),
    source=BETA,
    domain=(SHAPE, SHAPE),
)
betaln = special(
    "betaln",
    lambda a, b: psi(a) - psi(a + b),
    lambda a, b: psi(b) - psi(a + b),
    source=BETA,
    domain=(SHAPE, SHAPE),
)


def _binom_in_x(x, y):
    return _slope_of_quotient(binom(x, y), x + 1, x - y + 1, rgamma(y + 1))


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
    pole, a = _pole(a)
    large = a > LARGE
    small = gammasgn(a) * jnp.exp(xlogy(a - 1, x) - x - gammaln(a))
    a, y = jnp.where(large, a, LARGE), jnp.where(large & (x != 0), x, 1)
    stirling = jnp.sqrt(a / (2 * np.pi)) * jnp.exp(-a * _deviance((y - a) / a) - _stirling(a)) / y
    return jnp.where(pole, 0, jnp.where(large & (x != 0), stirling, small))


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
    density, end = _gamma_density(a, x), x == 0
    inner = jnp.where(end, 1, x)
    inside = _gamma_density(a, inner) * ((a - 1) / inner - 1)
    at_end = _gamma_density(a - 1, x * end) - _gamma_density(a, x * end)
    in_a = xlogy(density, x) - density * psi(a)
    return density, in_a * tangents[0] + jnp.where(end, at_end, inside) * tangents[1]


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


def beta_density(a, b, x):
    """x^(a-1) (1-x)^(b-1) / B(a, b)"""
    return _beta_density(*jnp.broadcast_arrays(*promote_dtypes(a, b, x)))


@jax.custom_jvp
def _beta_density(a, b, x):
    (no_a, a), (no_b, b) = _pole(a), _pole(b)
    sign = gammasgn(a) * gammasgn(b) * gammasgn(a + b)
    small = sign * jnp.exp(xlogy(a - 1, x) + xlog1py(b - 1, -x) - betaln(a, b))
    large = (a > LARGE) & (b > LARGE) & (x > 0) & (x < 1)
    a, b, y = jnp.where(large, a, LARGE), jnp.where(large, b, LARGE), jnp.where(large, x, 0.5)
    excess = (a + b) * y - a
    exponent = -a * _deviance(excess / a) - b * _deviance(-excess / b)
    exponent += _stirling(a + b) - _stirling(a) - _stirling(b)
    root = jnp.sqrt(a / (a + b) * b / (2 * np.pi))
    stirling = root * jnp.exp(exponent) / (y * (1 - y))
    return jnp.where(no_a | no_b, 0, jnp.where(large, stirling, small))


@_beta_density.defjvp
def _(primals, tangents):
    a, b, x = primals
    density, end = _beta_density(a, b, x), (x == 0) | (x == 1)
    inner = jnp.where(end, 0.5, x)
    inside = _beta_density(a, b, inner) * ((a - 1) / inner - (b - 1) / (1 - inner))
    outer = jnp.where(end, x, 0)
    at_end = (a + b - 1) * (_beta_density(a - 1, b, outer) - _beta_density(a, b - 1, outer))
    in_a = xlogy(density, x) - density * (psi(a) - psi(a + b))
    in_b = xlog1py(density, -x) - density * (psi(b) - psi(a + b))
    in_x = jnp.where(end, at_end, inside)
    return density, in_a * tangents[0] + in_b * tangents[1] + in_x * tangents[2]


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
