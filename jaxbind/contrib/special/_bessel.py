"""Bessel functions and their kin: DLMF chapters 9, 10 and 11.

There is no closed form for derivatives with respect to the order (DLMF 10.15 and 10.38 have them
at special orders).
"""

from __future__ import annotations

from math import factorial

import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxbind.contrib.special._gamma import rgamma
from jaxbind.contrib.special._table import either, integers, real_only, special

ORDER, POSITIVE = (-3.3, 6.7), (0.2, 20)


def _scaled(v, z, turn, value, near):
    """The derivative of ``exp(-z) I_v(z)`` (turn -1), ``exp(z) K_v(z)`` (turn 1), or H (±i).

    It is smaller than what it is the difference of, by a factor of z: far out by the asymptotic
    series, which is that of K at ``turn z`` and of which the function itself, ``value``, is divided
    out.
    """
    size = 50 + 2 * v**2
    far = jnp.abs(z) > size
    if isinstance(turn, complex):  # elsewhere H has both exponentials
        far &= jnp.real(z) > 0
    outer = jnp.where(far, z, size)
    x = jnp.abs(outer) if turn == -1 else outer  # even or odd in z
    term, total, turned = 1.0, 1.0, 0.5
    for k in range(1, 11):
        term = term * (4 * v**2 - (2 * k - 1) ** 2) / (8 * k * turn * x)
        total, turned = total + term, turned + (k + 0.5) * term
    return jnp.where(far, -value(outer) * turned / (total * outer), near(jnp.where(far, 1, z)))


def _beside_pole(function, z):
    """Its value, and 0 at z = 0, where what it is added to is of higher order."""
    return jnp.where(z == 0, 0, function(jnp.where(z == 0, 1, z)))


def _second_kind(function):
    """The slope of Y_v; at 0, where both neighbours are infinite, that of the power it goes with.

    That is z^-|v| (DLMF 10.7.4), and log z for v = 0; but Y_v is J_-v or its negative for v = -1/2,
    -3/2, ... (DLMF 10.2.3).
    """

    def slope(v, z):
        pole, logarithm = z == 0, v == 0
        inner, end = jnp.where(pole, 1, z), jnp.where(pole & logarithm, z, 1)
        away = (function()(v - 1, inner) - function()(v + 1, inner)) / 2
        base = jnp.where(pole & ~logarithm, z, 1)
        power = -abs(v) / base * function()(v, base)
        half = (v < 0) & (v - 0.5 == jnp.floor(v - 0.5))
        power = jnp.where(half, jnp.where(v == -0.5, jnp.inf, 0.0), power)
        return jnp.where(pole, jnp.where(logarithm, -function()(1, end), power), away)

    return slope


# Bessel and Hankel functions --------------------------------------------------------------------

CYLINDER = "DLMF 10.6.1"  # 2 C'_v = C_(v-1) - C_(v+1), for J, Y and both H
SINGULAR = "DLMF 10.6.1, 10.7.4 at 0"

jv = special(
    "jv",
    None,
    lambda v, z: (jv(v - 1, z) - jv(v + 1, z)) / 2,
    source=CYLINDER,
    domain=(ORDER, POSITIVE),
    analytic=True,
)
jn = special(
    "jn",
    None,
    lambda v, z: (jn(v - 1, z) - jn(v + 1, z)) / 2,
    source=CYLINDER,
    domain=(ORDER, POSITIVE),
    analytic=True,
)
yv = special(
    "yv",
    None,
    _second_kind(lambda: yv),
    source=SINGULAR,
    domain=(ORDER, POSITIVE),
    analytic=True,
)
yn = special(
    "yn",
    None,
    _second_kind(lambda: yn),
    source=SINGULAR,
    domain=(integers(0, 8), POSITIVE),
)
hankel1 = special(
    "hankel1",
    None,
    lambda v, z: (hankel1(v - 1, z) - hankel1(v + 1, z)) / 2,
    source=CYLINDER,
    domain=(ORDER, POSITIVE),
    analytic=True,
)
hankel2 = special(
    "hankel2",
    None,
    lambda v, z: (hankel2(v - 1, z) - hankel2(v + 1, z)) / 2,
    source=CYLINDER,
    domain=(ORDER, POSITIVE),
    analytic=True,
)
SCALED = "DLMF 10.6.1, 10.17.5 and 10.17.6"


def _scaled_hankel(function, turn):
    """The derivative of ``exp(-turn z) H_v(z)``, with turn = i or -i."""

    def slope(v, z):
        def near(z):
            return (function()(v - 1, z) - function()(v + 1, z)) / 2 - turn * function()(v, z)

        return _scaled(v, z, -turn, lambda z: function()(v, z), near)

    return slope


hankel1e = special(
    "hankel1e",
    None,
    _scaled_hankel(lambda: hankel1e, 1j),
    source=SCALED,
    domain=(ORDER, POSITIVE),
    analytic=True,
)
hankel2e = special(
    "hankel2e",
    None,
    _scaled_hankel(lambda: hankel2e, -1j),
    source=SCALED,
    domain=(ORDER, POSITIVE),
    analytic=True,
)


def _jve(v, z):
    real_only("jve", z)
    return (jve(v - 1, z) - jve(v + 1, z)) / 2


def _yve(v, z):
    real_only("yve", z)
    return (yve(v - 1, z) - yve(v + 1, z)) / 2


jve = special("jve", None, _jve, source=CYLINDER, domain=(ORDER, POSITIVE))
yve = special("yve", None, _yve, source=CYLINDER, domain=(ORDER, POSITIVE))
j0 = special("j0", lambda x: -j1(x), source="DLMF 10.6.3", domain=((-20, 20),))


def _j1(x):
    """Far out without J_2, which SciPy 1.18 has there with few digits."""
    near = abs(x) < 1
    return either(near, x, lambda x: (j0(x) - jv(2, x)) / 2, lambda x: j0(x) - j1(x) / x, 1)


def _y1(x):
    return _beside_pole(y0, x) - y1(x) / x


j1 = special("j1", _j1, source="DLMF 10.6.1 and 10.6.2", domain=((-20, 20),))
y0 = special("y0", lambda x: -y1(x), source="DLMF 10.6.3", domain=(POSITIVE,))
y1 = special("y1", _y1, source="DLMF 10.6.2", domain=(POSITIVE,))

# Modified Bessel functions ----------------------------------------------------------------------

MODIFIED = "DLMF 10.29.1"
MODIFIED_SCALED = "DLMF 10.29.1, 10.40.1 and 10.40.2"

iv = special(
    "iv",
    None,
    lambda v, z: (iv(v - 1, z) + iv(v + 1, z)) / 2,
    source=MODIFIED,
    domain=(ORDER, POSITIVE),
    analytic=True,
)
kv = special(
    "kv",
    None,
    lambda v, z: -(kv(v - 1, z) + kv(v + 1, z)) / 2,
    source=MODIFIED,
    domain=(ORDER, POSITIVE),
    analytic=True,
)
kn = special(
    "kn",
    None,
    lambda n, x: -(kn(n - 1, x) + kn(n + 1, x)) / 2,
    source=MODIFIED,
    domain=(integers(0, 8), POSITIVE),
)


def _kve(v, z):
    def near(z):
        return _beside_pole(lambda z: kve(v, z), z) - (kve(v - 1, z) + kve(v + 1, z)) / 2

    return _scaled(v, z, 1, lambda z: kve(v, z), near)


kve = special(
    "kve",
    None,
    _kve,
    source=MODIFIED_SCALED,
    domain=(ORDER, POSITIVE),
    analytic=True,
)


def _ive(v, z):
    real_only("ive", z)

    def near(z):
        return (ive(v - 1, z) + ive(v + 1, z)) / 2 - jnp.sign(z) * ive(v, z)

    return _scaled(v, z, -1, lambda z: ive(v, z), near)


ive = special("ive", None, _ive, source=MODIFIED_SCALED, domain=(ORDER, POSITIVE))
i0 = special("i0", lambda x: i1(x), source="DLMF 10.29.3", domain=((-20, 20),))
i1 = special("i1", lambda x: (i0(x) + iv(2, x)) / 2, source=MODIFIED, domain=((-20, 20),))
i0e = special(
    "i0e",
    lambda x: _scaled(0, x, -1, i0e, lambda x: i1e(x) - jnp.sign(x) * i0e(x)),
    source=MODIFIED_SCALED,
    domain=(POSITIVE,),
)
i1e = special(
    "i1e",
    lambda x: _scaled(1, x, -1, i1e, lambda x: (i0e(x) + ive(2, x)) / 2 - jnp.sign(x) * i1e(x)),
    source=MODIFIED_SCALED,
    domain=(POSITIVE,),
)
k0 = special("k0", lambda x: -k1(x), source="DLMF 10.29.3", domain=(POSITIVE,))
k1 = special("k1", lambda x: -(k0(x) + kn(2, x)) / 2, source=MODIFIED, domain=(POSITIVE,))
k0e = special(
    "k0e",
    lambda x: _scaled(0, x, 1, k0e, lambda x: _beside_pole(k0e, x) - k1e(x)),
    source=MODIFIED_SCALED,
    domain=(POSITIVE,),
)
k1e = special(
    "k1e",
    lambda x: _scaled(1, x, 1, k1e, lambda x: _beside_pole(k1e, x) - (k0e(x) + kve(2, x)) / 2),
    source=MODIFIED_SCALED,
    domain=(POSITIVE,),
)


# Spherical Bessel functions ---------------------------------------------------------------------

SPHERICAL = "DLMF 10.51.1 and 10.51.4"


def _neighbours(f, n, z, sign):
    first = n == 0  # where the one below has no part, infinite though it may be
    below = jnp.where(first, 0, n * f(jnp.maximum(n - 1, 0), jnp.where(first, 1, z)))
    return (below + sign * (n + 1) * f(n + 1, z)) / (2 * n + 1)


def _spherical_yn(n, z):
    """At 0, where both neighbours are infinite, y_n goes with z^(-n-1) (DLMF 10.52.2)."""
    pole = z == 0
    end, inner = jnp.where(pole, z, 1), jnp.where(pole, 1, z)
    at_pole = -(n + 1) / end * spherical_yn(n, end)
    return jnp.where(pole, at_pole, _neighbours(spherical_yn, n, inner, -1))


def _spherical(function, rule):
    domain = (integers(0, 8), POSITIVE)
    return special(
        function, None, rule, source=SPHERICAL, domain=domain, analytic=True, signature="(),()->()"
    )


spherical_jn = _spherical(
    scipy.special.spherical_jn, lambda n, z: _neighbours(spherical_jn, n, z, -1)
)
spherical_yn = _spherical(scipy.special.spherical_yn, _spherical_yn)
spherical_in = _spherical(
    scipy.special.spherical_in, lambda n, z: _neighbours(spherical_in, n, z, 1)
)
spherical_kn = _spherical(
    scipy.special.spherical_kn, lambda n, z: -_neighbours(spherical_kn, n, z, 1)
)

# Airy functions ---------------------------------------------------------------------------------

airy = special(
    "airy", lambda z: _airy(z, *airy(z)), source="DLMF 9.2.1", domain=((-8, 4),), analytic=True
)


def _airy(z, ai, aip, bi, bip):
    return aip, z * ai, bip, z * bi


def _airye(z):
    """Scaled by exp(±ζ), ζ = 2/3 z^(3/2); the scale of Bi is 1 where ζ is imaginary.

    Far out, where that cancels, Ai and Bi are √z times Bessel functions of ζ of order 1/3, and
    their slopes z times those of order 2/3 (DLMF 9.6.2 to 9.6.5; Bi to rounding).
    """
    real_only("airye", z)
    scaled = airye(z)
    distant = z > 30
    x = jnp.where(distant, z, 30)

    def slope(value, power, v, turn):
        value = jnp.where(distant, value, 0)
        moved = _scaled(v, x**1.5 / 1.5, turn, lambda _: value, jnp.zeros_like)
        return value * power / x + jnp.sqrt(x) * moved

    powers, orders, turns = (1 / 2, 1, 1 / 2, 1), (1 / 3, 2 / 3, 1 / 3, 2 / 3), (1, 1, -1, -1)
    far = map(slope, scaled, powers, orders, turns)
    ai, aip, bi, bip = scaled
    root = jnp.sqrt(jnp.where(distant, 1, jnp.where(z < 0, jnp.nan, z)))
    down = jnp.where(z < 0, 0, jnp.sqrt(jnp.where((z < 0) | distant, 1, z)))
    near = aip + root * ai, z * ai + root * aip, bip - down * bi, z * bi - down * bip
    return tuple(jnp.where(distant, f, n) for f, n in zip(far, near, strict=True))


airye = special("airye", _airye, source="DLMF 9.2.1, 9.6.2 to 9.6.5", domain=((0.1, 8),))
itairy = special(
    "itairy",
    lambda x: (*airy(x)[::2], *airy(-x)[::2]),
    source="DLMF 9.10",
    domain=((-4, 2),),
    rtol=1e-2,  # of SciPy 1.18, against Ai itself
)

# Kelvin functions: x² w'' + x w' = i x² w for ber + i bei and ker + i kei -------------------------

KELVIN = "DLMF 10.61.3"


def _slopes_over_x(x):
    """ber'(x)/x and bei'(x)/x near 0, by their series (DLMF 10.65.1)."""
    fourth = (x / 2) ** 4
    ber = sum((-1) ** k * k * fourth ** (k - 1) / float(factorial(2 * k)) ** 2 for k in range(1, 6))
    bei = sum(
        (-1) ** k * (k + 0.5) * fourth**k / float(factorial(2 * k + 1)) ** 2 for k in range(5)
    )
    return (x / 2) ** 2 * ber, bei


def _berp_over_x(x):
    return either(abs(x) < 1, x, lambda x: _slopes_over_x(x)[0], lambda x: berp(x) / x, 1)


def _beip_over_x(x):
    return either(abs(x) < 1, x, lambda x: _slopes_over_x(x)[1], lambda x: beip(x) / x, 1)


ber = special("ber", lambda x: berp(x), source=KELVIN, domain=((0.2, 10),))
bei = special("bei", lambda x: beip(x), source=KELVIN, domain=((0.2, 10),))
ker = special("ker", lambda x: kerp(x), source=KELVIN, domain=((0.2, 10),))
kei = special("kei", lambda x: keip(x), source=KELVIN, domain=((0.2, 10),))
berp = special("berp", lambda x: -bei(x) - _berp_over_x(x), source=KELVIN, domain=((0.2, 10),))
beip = special("beip", lambda x: ber(x) - _beip_over_x(x), source=KELVIN, domain=((0.2, 10),))
kerp = special("kerp", lambda x: -kei(x) - kerp(x) / x, source=KELVIN, domain=((0.2, 10),))
keip = special("keip", lambda x: ker(x) - keip(x) / x, source=KELVIN, domain=((0.2, 10),))


def _kelvin(x):
    be, ke, bep, kep = kelvin(x)
    return bep, kep, 1j * be - _berp_over_x(x) - 1j * _beip_over_x(x), 1j * ke - kep / x


kelvin = special("kelvin", _kelvin, source=KELVIN, domain=((0.2, 10),))

# Struve functions -------------------------------------------------------------------------------


def _power(v, x):
    return (x / 2) ** v * rgamma(v + 1.5) / np.sqrt(np.pi)


def _struve(f, v, x, at_zero):
    """Without the power that both recurrences across three orders add, and large x cancels."""
    away = f(v - 1, x) - v / jnp.where(x == 0, 1, x) * f(v, x)
    return jnp.where(x == 0, at_zero, away)


struve = special(
    "struve",
    None,
    lambda v, x: _struve(struve, v, x, (struve(v - 1, x) - struve(v + 1, x) + _power(v, x)) / 2),
    source="DLMF 11.4.27, 11.4.23 at 0",
    domain=((0, 6.7), POSITIVE),
)
modstruve = special(
    "modstruve",
    None,
    lambda v, x: _struve(
        modstruve, v, x, (modstruve(v - 1, x) + modstruve(v + 1, x) + _power(v, x)) / 2
    ),
    source="DLMF 11.4.29, 11.4.25 at 0",
    domain=((0, 6.7), POSITIVE),
)

# Integrals --------------------------------------------------------------------------------------

INTEGRAL = "integrand (DLMF 10.43, 11.7)"

itj0y0 = special("itj0y0", lambda x: (j0(x), y0(x)), source=INTEGRAL, domain=(POSITIVE,))
iti0k0 = special("iti0k0", lambda x: (i0(x), k0(x)), source=INTEGRAL, domain=((0.2, 10),))


def _near_zero(x, first, ratio, closed):
    """For |x| < 1 by a series: its first term and the ratio of each to the one before."""

    def series(x):
        term = total = first(x)
        for k in range(1, 11):
            term = term * ratio(k, x)
            total = total + term
        return total

    return either(abs(x) < 1, x, series, closed, 1)


def _one_less(x, sign, closed):
    """(1 - J0(x))/x (sign -1) or (I0(x) - 1)/x (DLMF 10.2.2 and 10.25.2)."""
    return _near_zero(x, lambda x: x / 4, lambda k, x: sign * (x / (2 * k + 2)) ** 2, closed)


it2j0y0 = special(
    "it2j0y0",
    lambda x: (_one_less(x, -1, lambda x: (1 - j0(x)) / x), -y0(x) / x),
    source=INTEGRAL,
    domain=(POSITIVE,),
)
it2i0k0 = special(
    "it2i0k0",
    lambda x: (_one_less(x, 1, lambda x: (i0(x) - 1) / x), -k0(x) / x),
    source=INTEGRAL,
    domain=((0.2, 10),),
)
itstruve0 = special("itstruve0", lambda x: struve(0, x), source=INTEGRAL, domain=(POSITIVE,))
it2struve0 = special(
    "it2struve0",
    lambda x: _near_zero(  # DLMF 11.2.1
        x,
        lambda x: jnp.full_like(x, -2 / np.pi),
        lambda k, x: -((x / (2 * k + 1)) ** 2),
        lambda x: -struve(0, x) / x,
    ),
    source=INTEGRAL,
    domain=(POSITIVE,),
)
itmodstruve0 = special(
    "itmodstruve0", lambda x: modstruve(0, x), source=INTEGRAL, domain=((0.2, 10),)
)


def _besselpoly(a, lmb, nu):
    """SciPy 1.18 is wrong for negative orders that are not integers."""
    above = besselpoly(a, lmb + 1, nu + 1)
    lowers = (nu >= 1) | (nu == jnp.round(nu))
    lowered = besselpoly(a, lmb + 1, jnp.where(lowers, nu - 1, 1)) - above
    end = ~lowers & (a == 0)  # where the slope goes with a^(nu - 1)
    inner = jnp.where(lowers | end, 1, a)
    raised = nu / inner * besselpoly(inner, lmb, nu) - 2 * above
    return jnp.where(lowers, lowered, jnp.where(end, nu / jnp.where(end, a, 1), raised))


besselpoly = special(
    "besselpoly",
    _besselpoly,
    None,
    None,
    source="DLMF 10.6.1 and 10.6.2 under the integral",
    domain=((0.2, 5), (0.5, 3), (0, 4)),
)
wright_bessel = special(
    "wright_bessel",
    None,
    None,
    lambda a, b, x: wright_bessel(a, a + b, x),
    source="term by term (DLMF 10.46.1)",
    domain=((0.2, 3), (0.2, 3), (0.1, 5)),
)
log_wright_bessel = special(
    "log_wright_bessel",
    None,
    None,
    lambda a, b, x: jnp.exp(log_wright_bessel(a, a + b, x) - log_wright_bessel(a, b, x)),
    source="term by term (DLMF 10.46.1)",
    domain=((0.2, 3), (0.2, 3), (0.1, 5)),
)
