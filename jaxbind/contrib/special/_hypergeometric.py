"""Hypergeometric functions and solutions of second-order equations: DLMF 12 to 16, 28, 30.

With respect to parameters there is no closed form.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxbind.contrib.special._guarded import guarded, signature_of
from jaxbind.contrib.special._table import integers, special

PARAMETER, ARGUMENT = (0.3, 5), (-5, 5)

hyp0f1 = special(
    "hyp0f1",
    None,
    lambda v, z: hyp0f1(v + 1, z) / v,
    source="DLMF 16.3.1",
    domain=(PARAMETER, ARGUMENT),
    analytic=True,
)
hyp1f1 = special(
    "hyp1f1",
    None,
    None,
    lambda a, b, x: a / b * hyp1f1(a + 1, b + 1, x),
    source="DLMF 13.3.15",
    domain=(PARAMETER, PARAMETER, ARGUMENT),
    analytic=True,
)
hyp2f1 = special(
    "hyp2f1",
    None,
    None,
    None,
    lambda a, b, c, z: a * b / c * hyp2f1(a + 1, b + 1, c + 1, z),
    source="DLMF 15.5.1",
    domain=(PARAMETER, PARAMETER, PARAMETER, (-5, 0.8)),
    analytic=True,
)
hyperu = special(
    "hyperu",
    None,
    None,
    lambda a, b, x: -a * hyperu(a + 1, b + 1, x),
    source="DLMF 13.3.22",
    domain=(PARAMETER, PARAMETER, (0.2, 8)),
)

# Parabolic cylinder functions: each gives the function and its derivative -------------------------

pbdv = special(
    "pbdv",
    None,
    lambda v, x: (pbdv(v, x)[1], (x**2 / 4 - v - 0.5) * pbdv(v, x)[0]),
    source="DLMF 12.2.4",
    domain=((-3.3, 4.7), (-4, 4)),
    rtol=1e-5,
)
pbvv = special(
    "pbvv",
    None,
    lambda v, x: (pbvv(v, x)[1], (x**2 / 4 - v - 0.5) * pbvv(v, x)[0]),
    source="DLMF 12.2.4",
    domain=((-3.3, 4.7), (-4, 4)),
    rtol=1e-3,
)
pbwa = special(
    "pbwa",
    None,
    lambda a, x: (pbwa(a, x)[1], (a - x**2 / 4) * pbwa(a, x)[0]),
    source="DLMF 12.14.2",
    domain=((-4, 4), (-4, 4)),
)

# Mathieu functions: y'' = (2q cos 2x - a) y, x in degrees; each gives y and dy/dx (x in radians) --

DEGREE = np.pi / 180
_OF_MATHIEU = (integers(1, 6), (0.1, 10))

mathieu_a = special("mathieu_a", None, None, source="no closed form", domain=_OF_MATHIEU)
mathieu_b = special("mathieu_b", None, None, source="no closed form", domain=_OF_MATHIEU)


def _angular(function, characteristic):
    def slope(m, q, x):
        y, dy = function()(m, q, x)
        turned = 2 * q * jnp.cos(2 * DEGREE * x) - characteristic(m, q)
        return DEGREE * dy, DEGREE * turned * y

    return slope


def _radial(function, characteristic):
    def slope(m, q, x):
        y, dy = function()(m, q, x)
        return dy, (characteristic(m, q) - 2 * q * jnp.cosh(2 * x)) * y

    return slope


def _mathieu(name, slope, domain, source):
    # they expand in series of at most 251 terms, and count them with an integer that overflows
    function = guarded(name, "m q x", lambda m, q, x: (np.abs(q) < 1e5) & (np.abs(m) < 1e3))
    return special(
        function, None, None, slope,
        source=source, domain=(*_OF_MATHIEU, domain), signature=signature_of(name),
    )  # fmt: skip


_ROUND, _AXIS = ((-180, 180), "DLMF 28.2.1"), ((0.1, 1.5), "DLMF 28.20.1")
mathieu_cem = _mathieu("mathieu_cem", _angular(lambda: mathieu_cem, mathieu_a), *_ROUND)
mathieu_sem = _mathieu("mathieu_sem", _angular(lambda: mathieu_sem, mathieu_b), *_ROUND)
mathieu_modcem1 = _mathieu("mathieu_modcem1", _radial(lambda: mathieu_modcem1, mathieu_a), *_AXIS)
mathieu_modcem2 = _mathieu("mathieu_modcem2", _radial(lambda: mathieu_modcem2, mathieu_a), *_AXIS)
mathieu_modsem1 = _mathieu("mathieu_modsem1", _radial(lambda: mathieu_modsem1, mathieu_b), *_AXIS)
mathieu_modsem2 = _mathieu("mathieu_modsem2", _radial(lambda: mathieu_modsem2, mathieu_b), *_AXIS)

# Spheroidal wave functions: ((1 - s x²) y')' + (λ - c² s x² - m²/(1 - s x²)) y = 0, with s = 1 for
# prolate and x -> i x, c -> -i c for oblate ones; each gives y and y'

SPHEROIDAL = "DLMF 30.2.1"

# SciPy has place for 300 terms in matrices, 200 in series, and 251 spherical Bessel functions;
# the numbers that are added below are those that it takes in addition

_DEGREES = (integers(0, 2), integers(2, 5), (0.2, 4))


def _has_eigenvalue(m, n, c):
    return (np.abs(n) < 1e6) & ((n - m) / 2 + np.abs(c) + 10 < 300)


def _has_angular(m, n, c, x):
    return (np.abs(n) < 1e3) & ((n - m) / 2 + np.abs(c) + 40 < 200)


def _has_radial(m, n, c, x):
    return n + 2 * np.abs(c) + 50 < 251


def _spheroidal(name, operands, is_safe, slope, source, *domain):
    return special(
        guarded(name, operands, is_safe), None, None, None, *slope,
        source=source, domain=(*_DEGREES, *domain), signature=signature_of(name),
    )  # fmt: skip


pro_cv, obl_cv = (
    _spheroidal(name, "m n c", _has_eigenvalue, (), "no closed form")
    for name in ("pro_cv", "obl_cv")
)


def _prolate(function):
    def slope(m, n, c, x):
        y, dy = function()(m, n, c, x)
        rest = 1 - x**2
        potential = pro_cv(m, n, c) - (c * x) ** 2 - m**2 / rest
        return dy, (2 * x * dy - potential * y) / rest

    return slope


def _oblate_angular(m, n, c, x):
    y, dy = obl_ang1(m, n, c, x)
    rest = 1 - x**2
    potential = obl_cv(m, n, c) + (c * x) ** 2 - m**2 / rest
    return dy, (2 * x * dy - potential * y) / rest


def _oblate_radial(m, n, c, x):
    y, dy = obl_rad1(m, n, c, x)
    rest = 1 + x**2
    potential = obl_cv(m, n, c) - (c * x) ** 2 - m**2 / rest
    return dy, (potential * y - 2 * x * dy) / rest


def _wave(name, is_safe, slope, domain):
    return _spheroidal(name, "m n c x", is_safe, (slope,), SPHEROIDAL, domain)


pro_ang1 = _wave("pro_ang1", _has_angular, _prolate(lambda: pro_ang1), (-0.9, 0.9))
pro_rad1 = _wave("pro_rad1", _has_radial, _prolate(lambda: pro_rad1), (1.1, 4))
obl_ang1 = _wave("obl_ang1", _has_angular, _oblate_angular, (-0.9, 0.9))
# obl_rad2 and pro_rad2 are left out: what SciPy 1.18 gives for them does not solve their equation
obl_rad1 = _wave("obl_rad1", _has_radial, _oblate_radial, (0.1, 4))
