"""Orthogonal polynomials (DLMF 18.9), Legendre functions and spherical harmonics (DLMF 14).

Degrees may be any real numbers where SciPy allows it; there is no derivative with respect to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import scipy.special

from jaxbind.contrib.special._gamma import binom
from jaxbind.contrib.special._table import integers, special

DEGREE, INSIDE, UNIT = integers(0, 8), (-1.5, 1.5), (-0.3, 1.3)


def _lowered(n: Any, rule: Callable) -> Any:
    """``rule(n - 1)``, and 0 for the constant polynomial."""
    value = rule(jnp.where(n == 0, n, n - 1))
    return jnp.where(n == 0, jnp.zeros_like(value), value)


def _first_of(n: Any, rule: Callable) -> Any:
    """`_lowered` for ``P_n``, which is ``P_(-n-1)`` (DLMF 14.9.5)."""
    return _lowered(jnp.where(n < 0, -n - 1, n), rule)


def _second_kind(n: Any, rule: Callable) -> Any:
    """`_lowered` for ``U_n``, which is ``-U_(-n-2)`` (by DLMF 18.5.2), and 0 for n = -1."""
    turned = n <= -2
    degree = jnp.where(turned, -n - 2, jnp.where(n == -1, 0, n))
    return jnp.where(turned, -1, 1) * _lowered(degree, rule)


eval_jacobi = special(
    "eval_jacobi",
    None,
    None,
    None,
    lambda n, alpha, beta, x: _lowered(
        n, lambda k: (n + alpha + beta + 1) / 2 * eval_jacobi(k, alpha + 1, beta + 1, x)
    ),
    source="DLMF 18.9.15",
    domain=(DEGREE, (0.2, 3), (0.2, 3), INSIDE),
    analytic=True,
)
eval_sh_jacobi = special(
    "eval_sh_jacobi",
    None,
    None,
    None,
    lambda n, p, q, x: _lowered(
        n, lambda k: (n + p) * eval_jacobi(k, p - q + 1, q, 2 * x - 1) / binom(2 * n + p - 1, n)
    ),
    source="DLMF 18.9.15",
    domain=(DEGREE, (2, 4), (0.5, 1.5), UNIT),
    analytic=True,
)
eval_gegenbauer = special(
    "eval_gegenbauer",
    None,
    None,
    lambda n, alpha, x: _lowered(n, lambda k: 2 * alpha * eval_gegenbauer(k, alpha + 1, x)),
    source="DLMF 18.9.19",
    domain=(DEGREE, (0.2, 3), INSIDE),
    analytic=True,
)


def _polynomial(name: str, slope: Callable, source: str, domain: tuple) -> Any:
    return special(name, None, slope, source=source, domain=(DEGREE, domain), analytic=True)


eval_legendre = _polynomial(
    "eval_legendre",
    lambda n, x: _first_of(n, lambda k: (k + 2) / 2 * eval_jacobi(k, 1.0, 1.0, x)),
    "DLMF 18.9.15",
    INSIDE,
)
eval_sh_legendre = _polynomial(
    "eval_sh_legendre",
    lambda n, x: _first_of(n, lambda k: (k + 2) * eval_jacobi(k, 1.0, 1.0, 2 * x - 1)),
    "DLMF 18.9.15",
    UNIT,
)
eval_chebyt = _polynomial(
    "eval_chebyt",
    lambda n, x: _lowered(n, lambda k: n * eval_chebyu(k, x)),
    "DLMF 18.9.21",
    INSIDE,
)
eval_chebyu = _polynomial(
    "eval_chebyu",
    lambda n, x: _second_kind(n, lambda k: 2 * eval_gegenbauer(k, 2.0, x)),
    "DLMF 18.9.19",
    INSIDE,
)
eval_chebyc = _polynomial(
    "eval_chebyc",
    lambda n, x: _lowered(n, lambda k: n * eval_chebys(k, x)),
    "DLMF 18.9.21",
    (-3, 3),
)
eval_chebys = _polynomial(
    "eval_chebys",
    lambda n, x: _second_kind(n, lambda k: eval_gegenbauer(k, 2.0, x / 2)),
    "DLMF 18.9.19",
    (-3, 3),
)
eval_sh_chebyt = _polynomial(
    "eval_sh_chebyt",
    lambda n, x: _lowered(n, lambda k: 2 * n * eval_sh_chebyu(k, x)),
    "DLMF 18.9.21",
    UNIT,
)
eval_sh_chebyu = _polynomial(
    "eval_sh_chebyu",
    lambda n, x: _second_kind(n, lambda k: 4 * eval_gegenbauer(k, 2.0, 2 * x - 1)),
    "DLMF 18.9.19",
    UNIT,
)
eval_laguerre = _polynomial(
    "eval_laguerre",
    lambda n, x: _lowered(n, lambda k: -eval_genlaguerre(k, 1.0, x)),
    "DLMF 18.9.23",
    (0, 8),
)
eval_genlaguerre = special(
    "eval_genlaguerre",
    None,
    None,
    lambda n, alpha, x: _lowered(n, lambda k: -eval_genlaguerre(k, alpha + 1, x)),
    source="DLMF 18.9.23",
    domain=(DEGREE, (0.2, 3), (0, 8)),
    analytic=True,
)
eval_hermite = special(
    "eval_hermite",
    None,
    lambda n, x: _lowered(n, lambda k: 2 * n * eval_hermite(k, x)),
    source="DLMF 18.9.25",
    domain=(DEGREE, (-3, 3)),
)
eval_hermitenorm = special(
    "eval_hermitenorm",
    None,
    lambda n, x: _lowered(n, lambda k: n * eval_hermitenorm(k, x)),
    source="DLMF 18.9.27",
    domain=(DEGREE, (-3, 3)),
)

# Legendre functions and spherical harmonics -----------------------------------------------------


def _lpmv_in_x(m, v, x):
    end = abs(x) == 1
    inner = jnp.where(end, 0, x)
    lowest = v + m == 0  # below it SciPy has none for negative orders
    lower = jnp.where(lowest, 0, (v + m) * lpmv(m, jnp.where(lowest, v, v - 1), inner))
    inside = v * inner * lpmv(m, v, inner) - lower
    no_more = jnp.sqrt(abs(1 - x**2))  # 0 at the end; higher derivatives are not known there
    at_end = _lpmv_at_end(m, v, jnp.where(end, jnp.sign(x), 1)) + no_more
    return jnp.where(end, at_end, inside / (inner**2 - 1))


def _lpmv_at_end(m, v, x):
    """The slope at x = ±1 for integer orders: P' for m = 0; others have a factor (1-x²)^(m/2)."""
    degree = v * (v + 1)
    first = degree / 2 * x ** (v + 1)  # Legendre's polynomial (DLMF 18.6.1 and 18.9.15)
    second = degree * (v - 1) * (v + 2) / 8 * x**v
    orders = {0: first, 1: x * first * jnp.inf, 2: -2 * x * second}
    # P of order -m is (-1)^m (v-m)!/(v+m)! times that of order m (DLMF 14.9.3)
    orders |= {-1: -x * first * jnp.inf, -2: -(x ** (v + 1)) / 4}
    slope = jnp.zeros_like(first)
    for order, known in orders.items():
        slope = jnp.where(m == order, known, slope)
    return jnp.where(m == jnp.round(m), slope, jnp.nan)


lpmv = special(
    "lpmv",
    None,
    None,
    _lpmv_in_x,
    source="DLMF 14.10.5",
    domain=(integers(0, 3), integers(1, 8), (-0.95, 0.95)),
)


def _sph_harm_y(n, m, theta, phi):
    return scipy.special.sph_harm_y(n, m, theta, phi)


_sph_harm_y.__name__ = "sph_harm_y"


def _in_theta(n, m, theta, phi):
    """The ladder operators of angular momentum, added; without poles at the poles.

    SciPy's functions have |sin θ| where the sphere has sin θ, which is negative beyond it.
    """
    up = jnp.sqrt(jnp.maximum((n - m) * (n + m + 1), 0))
    down = jnp.sqrt(jnp.maximum((n + m) * (n - m + 1), 0))
    higher, lower = jnp.clip(m + 1, -n, n), jnp.clip(m - 1, -n, n)
    turn = jnp.exp(1j * phi)
    raised = up * sph_harm_y(n, higher, theta, phi) / turn
    side = jnp.where(jnp.sin(theta) < 0, -1, 1)
    return side * (raised - down * sph_harm_y(n, lower, theta, phi) * turn) / 2


sph_harm_y = special(
    _sph_harm_y,
    None,
    None,
    _in_theta,
    lambda n, m, theta, phi: 1j * m * sph_harm_y(n, m, theta, phi),
    source="DLMF 14.30.1 and 14.10.3",
    domain=(integers(2, 6), integers(-2, 2), (0.1, 3), (-3, 3)),
    signature="(),(),(),()->()",
    dtype=complex,
)
