"""Elementary functions that SciPy computes without loss of digits."""

from __future__ import annotations

from math import log

import jax
import jax.numpy as jnp
import numpy as np

from jaxbind.contrib.special._table import special

SOURCE = "elementary"
DEGREE = np.pi / 180

# Exponentials, logarithms and powers ------------------------------------------------------------

cbrt = special("cbrt", lambda x: 1 / (3 * cbrt(x) ** 2), source=SOURCE, domain=((0.1, 20),))
exp2 = special("exp2", lambda x: log(2) * exp2(x), source=SOURCE, domain=((-8, 8),))
exp10 = special("exp10", lambda x: log(10) * exp10(x), source=SOURCE, domain=((-4, 4),))
expm1 = special("expm1", jnp.exp, source=SOURCE, domain=((-5, 5),), analytic=True)
log1p = special("log1p", lambda x: 1 / (1 + x), source=SOURCE, domain=((-0.9, 9),), analytic=True)


def _quotient(x, y):
    """x / y, and 0 where x is: x log y is 0 there for every y."""
    return jnp.where(x == 0, 0, x / jnp.where(x == 0, 1, y))


xlogy = special(
    "xlogy",
    lambda x, y: jnp.log(y),
    lambda x, y: _quotient(x, y),
    source=SOURCE,
    domain=((0.1, 5), (0.1, 5)),
    analytic=True,
)
xlog1py = special(
    "xlog1py",
    lambda x, y: log1p(y),
    lambda x, y: _quotient(x, 1 + y),
    source=SOURCE,
    domain=((0.1, 5), (-0.9, 5)),
    analytic=True,
)


def _powm1_in_x(x, y):
    """y x^(y-1); x^0 is 1 also at x = 0."""
    return y * jnp.where((x == 0) & (y == 0), 1, x) ** (y - 1)


def _powm1_in_y(x, y):
    """x^y log x, which goes to 0 with x for y > 0."""
    vanishes = (x == 0) & (y > 0)
    x = jnp.where(vanishes, 1, x)
    return jnp.where(vanishes, 0, x**y * jnp.log(x))


powm1 = special(
    "powm1",
    _powm1_in_x,
    _powm1_in_y,
    source=SOURCE,
    domain=((0.1, 5), (-3, 3)),
)

# Angles in degrees ------------------------------------------------------------------------------

cosm1 = special("cosm1", lambda x: -jnp.sin(x), source=SOURCE, domain=((-6, 6),))
sindg = special("sindg", lambda x: DEGREE * cosdg(x), source=SOURCE, domain=((-360, 360),))
cosdg = special("cosdg", lambda x: -DEGREE * sindg(x), source=SOURCE, domain=((-360, 360),))
tandg = special("tandg", lambda x: DEGREE * (1 + tandg(x) ** 2), source=SOURCE, domain=((-80, 80),))
cotdg = special(
    "cotdg", lambda x: -DEGREE * (1 + cotdg(x) ** 2), source=SOURCE, domain=((10, 170),)
)
radian = special(
    "radian",
    lambda d, m, s: jnp.full_like(d, DEGREE, dtype=float),
    lambda d, m, s: jnp.full_like(d, DEGREE / 60, dtype=float),
    lambda d, m, s: jnp.full_like(d, DEGREE / 3600, dtype=float),
    source=SOURCE,
    domain=((-180, 180), (0, 60), (0, 60)),
)

# Entropies, losses and logistic functions -------------------------------------------------------

entr = special("entr", lambda x: -jnp.log(x) - 1, source=SOURCE, domain=((0.1, 5),))


def _log_ratio(x, y):
    """log(x / y), also where that leaves the range of the numbers."""
    ratio = x / y
    far = (ratio < 1e-30) | (ratio > 1e30)
    return jnp.where(far, jnp.log(x) - jnp.log(y), jnp.log(jnp.where(far, 1, ratio)))


rel_entr = special(
    "rel_entr",
    lambda x, y: _log_ratio(x, y) + 1,
    lambda x, y: -x / y,
    source=SOURCE,
    domain=((0.1, 5), (0.1, 5)),
)
kl_div = special(
    "kl_div",
    lambda x, y: _log_ratio(x, y),
    lambda x, y: 1 - x / y,
    source=SOURCE,
    domain=((0.1, 5), (0.1, 5)),
)
huber = special(
    "huber",
    lambda delta, r: jnp.maximum(abs(r) - delta, 0),
    lambda delta, r: jnp.clip(r, -delta, delta),
    source=SOURCE,
    domain=((0.1, 3), (-5, 5)),
)


def _length(delta, r):
    """sqrt(delta² + r²), but 1 where it is 0."""
    return jnp.hypot(jnp.where((delta == 0) & (r == 0), 1, delta), r)


@jax.custom_jvp
def _share(x, y):
    """x / sqrt(x² + y²)"""
    return x / _length(x, y)


@_share.defjvp
def _(primals, tangents):
    """y (y dx - x dy) / s³ with the length s, which a difference of quotients loses to rounding."""
    x, y = primals
    here, other = _share(x, y), _share(y, x)
    return here, other * (other * tangents[0] - here * tangents[1]) / _length(x, y)


@jax.custom_jvp
def _pseudo_huber_in_r(delta, r):
    return delta * _share(r, delta)


@_pseudo_huber_in_r.defjvp
def _(primals, tangents):
    delta, r = primals
    slope = _share(r, delta) ** 3 * tangents[0] + _share(delta, r) ** 3 * tangents[1]
    return _pseudo_huber_in_r(delta, r), slope


def _pseudo_huber_in_delta(delta, r):
    """2 (s - delta) - r²/s with the length s, without the cancellation: r⁴/(s (s + delta)²)."""
    s = _length(delta, r)
    return (r / (s + delta)) ** 2 * r * (r / s)


pseudo_huber = special(
    "pseudo_huber",
    _pseudo_huber_in_delta,
    lambda delta, r: _pseudo_huber_in_r(delta, r),
    source=SOURCE,
    domain=((0.1, 3), (-5, 5)),
)
expit = special("expit", lambda x: expit(x) * expit(-x), source=SOURCE, domain=((-10, 10),))
log_expit = special("log_expit", lambda x: expit(-x), source=SOURCE, domain=((-10, 10),))
logit = special("logit", lambda p: 1 / (p * (1 - p)), source=SOURCE, domain=((0.05, 0.95),))
round = special("round", jnp.zeros_like, source="constant between steps", domain=((-5, 5),))
