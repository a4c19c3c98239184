"""Elliptic integrals and functions: DLMF chapters 19 and 22, in the parameter m = k²."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxbind.contrib.special._elementary import xlogy
from jaxbind.contrib.special._hypergeometric import hyp2f1
from jaxbind.contrib.special._table import either, special

# Carlson's symmetric integrals ------------------------------------------------------------------
#

ARGUMENT = (0.2, 8)
CARLSON = "DLMF 19.18"

elliprf = special(
    "elliprf",
    lambda x, y, z: -elliprd(y, z, x) / 6,
    lambda x, y, z: -elliprd(x, z, y) / 6,
    lambda x, y, z: -elliprd(x, y, z) / 6,
    source="DLMF 19.18.1",
    domain=(ARGUMENT, ARGUMENT, ARGUMENT),
    analytic=True,
)


def _elliprg_in_x(x, y, z):
    """R_D is infinite at x = 0, and x R_D is 0."""
    inner = jnp.where(x == 0, 1, x)
    return (elliprf(x, y, z) - jnp.where(x == 0, 0, inner * elliprd(y, z, inner)) / 3) / 4


elliprg = special(
    "elliprg",
    lambda x, y, z: _elliprg_in_x(x, y, z),
    lambda x, y, z: _elliprg_in_x(y, x, z),
    lambda x, y, z: _elliprg_in_x(z, x, y),
    source="DLMF 19.16.3 and 19.18.1",
    domain=(ARGUMENT, ARGUMENT, ARGUMENT),
    analytic=True,
)


def _principal(y):
    """Where R_C is a Cauchy principal value."""
    return (jnp.real(y) < 0) & (jnp.imag(y) == 0)


def _elliprc_in_x(x, y):
    principal = _principal(y)
    usual = jnp.where(principal, jnp.ones_like(y), y)
    closed = (elliprc(x, y) - 1 / jnp.sqrt(x)) / (2 * (jnp.where(principal, y, -x) - x))
    return jnp.where(principal, closed, -elliprd(usual, usual, x) / 6)


def _elliprc_in_y(x, y):
    """From homogeneity: x ∂/∂x + y ∂/∂y = -1/2."""
    at_zero = x == 0  # where ∂/∂x is infinite
    moved = x * _elliprc_in_x(jnp.where(at_zero, 1, x), y)
    return -(elliprc(x, y) / 2 + moved) / y


elliprc = special(
    "elliprc",
    _elliprc_in_x,
    _elliprc_in_y,
    source="DLMF 19.18.1 and 19.6.15",
    domain=(ARGUMENT, ARGUMENT),
    analytic=True,
)


def _elliprd_in_x(x, y, z):
    """-3/4 ∫ (t+x)^(-3/2) (t+y)^(-1/2) (t+z)^(-3/2): a divided difference of R_D.

    Where x is near z, in powers of ε = (z-x)/(z+x) about their mean μ: (t+x)(t+z) is
    (t+μ)² - (με)², and what is left under the integral is hypergeometric (DLMF 19.16.18).
    """
    mean, eps = (x + z) / 2, (z - x) / (z + x)
    near = abs(eps) < 0.02
    apart = jnp.where(near, jnp.ones_like(z), z - x)
    divided = (elliprd(x, y, z) - elliprd(y, z, x)) / (2 * apart)
    small, ratio = jnp.where(near, eps, 0) ** 2, 1 - jnp.where(near, y / mean, 1)
    terms = [1.0, 1.5, 1.875, 2.1875, 2.4609375]  # (3/2)_j / j!
    series = sum(
        term * small**j / (2 * j + 2.5) * hyp2f1(2 * j + 2.5, 0.5, 2 * j + 3.5, ratio)
        for j, term in enumerate(terms)
    )
    return jnp.where(near, -0.75 * series / mean**2.5, divided)


def _elliprd_in_z(x, y, z):
    """From homogeneity: x ∂/∂x + y ∂/∂y + z ∂/∂z = -3/2."""
    moved = x * _elliprd_in_x(x, y, z) + y * _elliprd_in_x(y, x, z)
    return -(1.5 * elliprd(x, y, z) + moved) / z


elliprd = special(
    "elliprd",
    lambda x, y, z: _elliprd_in_x(x, y, z),
    lambda x, y, z: _elliprd_in_x(y, x, z),
    _elliprd_in_z,
    source="DLMF 19.16.5, in partial fractions, and 19.18.12",
    domain=(ARGUMENT, ARGUMENT, ARGUMENT),
    analytic=True,
)


def _elliprj_in_x(x, y, z, p):
    """-3/4 ∫ (t+x)^(-3/2) (t+y)^(-1/2) (t+z)^(-1/2) (t+p)^(-1): a divided difference.

    Where x is near p, ∂R_D/∂x at their mean, weighted so that what is left out is of second order.
    """
    near = abs(p - x) < 1e-5 * abs(p)
    apart = jnp.where(near, 1, p - x)
    divided = (elliprj(x, y, z, p) - elliprd(y, z, x)) / (2 * apart)
    together = _elliprd_in_z(y, z, jnp.where(near, 0.6 * x + 0.4 * p, 1)) / 3
    return jnp.where(near, together, divided)


def _elliprj_in_p(x, y, z, p):
    moved = (
        x * _elliprj_in_x(x, y, z, p)
        + y * _elliprj_in_x(y, x, z, p)
        + z * _elliprj_in_x(z, x, y, p)
    )
    return -(1.5 * elliprj(x, y, z, p) + moved) / p


elliprj = special(
    "elliprj",
    lambda x, y, z, p: _elliprj_in_x(x, y, z, p),
    lambda x, y, z, p: _elliprj_in_x(y, x, z, p),
    lambda x, y, z, p: _elliprj_in_x(z, x, y, p),
    _elliprj_in_p,
    source="DLMF 19.16.2, in partial fractions, and 19.18.12",
    domain=((0.2, 1.5), (0.2, 1.5), (0.2, 1.5), (2, 8)),
)

# Legendre's integrals ---------------------------------------------------------------------------


def _b(m, rest):
    """(E - (1-m) K)/m for m = 1 - rest, the integral of cos² θ / sqrt(1 - m sin² θ) over a quarter.

    Hypergeometric near m = 0, where that is 0/0; near m = 1 by the expansions of E and K (DLMF
    19.12.1 and 19.12.2), where 1 - rest is rounded.
    """
    near, far = abs(m) < 0.5, rest < jnp.sqrt(jnp.finfo(jnp.result_type(rest, 1.0)).eps)
    series = np.pi / 4 * hyp2f1(0.5, 0.5, 2.0, jnp.where(near, m, 0))
    end = jnp.where(far, rest, 0)
    log = 1 + (0.75 - np.log(2)) * end + xlogy(end, end) / 4
    p = jnp.where(near | far, 0.5, rest)
    closed = (ellipe(1 - p) - p * ellipkm1(p)) / (1 - p)
    return jnp.where(near, series, jnp.where(far, log, closed))


def _dk(m, rest):
    """dK/dm for m = 1 - rest."""
    return _b(m, rest) / (2 * rest)


def _de(m):
    return either(
        abs(m) < 0.5,
        m,
        lambda m: -np.pi / 8 * hyp2f1(0.5, 1.5, 2.0, m),
        lambda m: (ellipe(m) - ellipk(m)) / (2 * m),
        0.5,
    )


COMPLETE = "DLMF 19.4.1 and 19.5.1"
ellipk = special("ellipk", lambda m: _dk(m, 1 - m), source=COMPLETE, domain=((-5, 0.95),))
ellipkm1 = special("ellipkm1", lambda p: -_dk(1 - p, p), source=COMPLETE, domain=((0.05, 3),))
ellipe = special("ellipe", _de, source="DLMF 19.4.2 and 19.5.2", domain=((-5, 0.95),))


def _periods(phi):
    """phi = n pi + the rest, which is at most pi/2 in size: n, and sine and cosine of the rest."""
    n = jnp.round(phi / np.pi)
    rest = phi - n * np.pi
    return n, jnp.sin(rest), jnp.cos(rest)


def _of_periods(n, m, slope):
    """``2 n`` times the slope of a complete integral, which is infinite for m = 1."""
    return jnp.where(n == 0, 0, 2 * n * slope(jnp.where(n == 0, 0.5, m)))


def _df(phi, m):
    n, s, c = _periods(phi)
    return _of_periods(n, m, lambda m: _dk(m, 1 - m)) + s**3 / 6 * elliprd(c**2, 1.0, 1 - m * s**2)


def _de_incomplete(phi, m):
    n, s, c = _periods(phi)
    return _of_periods(n, m, _de) - s**3 / 6 * elliprd(c**2, 1 - m * s**2, 1.0)


ellipkinc = special(
    "ellipkinc",
    lambda phi, m: 1 / jnp.sqrt(1 - m * jnp.sin(phi) ** 2),
    _df,
    source="DLMF 19.2.4, 19.25.5 and 19.18.1",
    domain=((-6, 6), (-5, 0.9)),
)
ellipeinc = special(
    "ellipeinc",
    lambda phi, m: jnp.sqrt(1 - m * jnp.sin(phi) ** 2),
    _de_incomplete,
    source="DLMF 19.2.5, 19.4.6 and 19.25.9",
    domain=((-6, 6), (-5, 0.9)),
)


def _agm_in_first(a, b):
    """M is the larger argument times μ(r), r = smaller/larger, with r μ' = 2/π μ² B(1 - r²).

    From M(a, b) = pi a / (2 K(1 - (b/a)²)) (DLMF 19.8.5), `_dk`, and homogeneity. At r = 0 the
    slope is infinite as 1/(r log² r) in the smaller argument, and 0 with infinite slope in the
    larger one.
    """
    first_is_less = abs(a) < abs(b)
    less, more = jnp.where(first_is_less, a, b), jnp.where(first_is_less, b, a)
    end = less == 0
    r = jnp.where(end, 1, less) / more
    mean = agm(1.0, r)
    moved = 2 / np.pi * mean**2 * _b(1 - r**2, jnp.maximum(r**2, jnp.finfo(r.dtype).tiny))
    in_less = jnp.where(end, jnp.where(end & first_is_less, less, 1) ** -2, moved / r)
    root = jnp.sqrt(jnp.where(end & ~first_is_less, less, 1))
    in_more = jnp.where(end, root / more, mean - moved)
    return jnp.where(first_is_less, in_less, in_more)


agm = special(
    "agm",
    lambda a, b: _agm_in_first(a, b),
    lambda a, b: _agm_in_first(b, a),
    source="DLMF 19.8.5 and 19.4.1",
    domain=((0.3, 8), (0.3, 8)),
)

# Jacobi's functions: am(u, m) is the inverse of F(phi, m), so ∂am/∂m = -dn ∂F/∂m ------------------


def _ellipj_in_u(u, m):
    sn, cn, dn, _ = ellipj(u, m)
    return cn * dn, -sn * dn, -m * sn * cn, dn


def _ellipj_in_m(u, m):
    sn, cn, dn, amplitude = ellipj(u, m)
    turned = -dn * _df(amplitude, m)
    return cn * turned, -sn * turned, -(sn**2 + 2 * m * sn * cn * turned) / (2 * dn), turned


ellipj = special(
    "ellipj",
    _ellipj_in_u,
    _ellipj_in_m,
    source="DLMF 22.13.1 to 22.13.3, 22.16.1 and 19.25.5",
    domain=((-6, 6), (0.05, 0.9)),
)
