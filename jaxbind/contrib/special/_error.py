"""Error functions, Fresnel integrals and exponential integrals: DLMF chapters 6, 7 and 8.19."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxbind.contrib.special._bessel import spherical_in, spherical_jn
from jaxbind.contrib.special._hypergeometric import hyp2f1
from jaxbind.contrib.special._table import integers, special

ROOT = np.sqrt(np.pi)

# Error functions --------------------------------------------------------------------------------

ERF = "DLMF 7.2.1"

erf = special(
    "erf", lambda z: 2 / ROOT * jnp.exp(-(z**2)), source=ERF, domain=((-4, 4),), analytic=True
)
erfc = special(
    "erfc", lambda z: -2 / ROOT * jnp.exp(-(z**2)), source=ERF, domain=((-4, 4),), analytic=True
)
erfi = special(
    "erfi", lambda z: 2 / ROOT * jnp.exp(z**2), source=ERF, domain=((-3, 3),), analytic=True
)


def _tail(z, sign, weight=lambda k: 1):
    """The sum over k > 0 of (2k - 1)!! (sign / (2 z²))^k, to rounding for |z| > 50."""
    term, total = 1.0, 0.0
    for k in range(1, 9):
        term = term * sign * (2 * k - 1) / (2 * z**2)
        total = total + weight(k) * term
    return total


def _far(z, far, tail, near):
    """A derivative that cancels far out: there by its asymptotic series (DLMF 7.12.1)."""
    return jnp.where(far, tail(jnp.where(far, z, 100)), near(jnp.where(far, 1, z)))


erfcx = special(
    "erfcx",
    lambda z: _far(
        z,
        (jnp.abs(z) > 50) & (jnp.real(z) > 0),
        lambda z: 2 / ROOT * _tail(z, -1),
        lambda z: 2 * z * erfcx(z) - 2 / ROOT,
    ),
    source="DLMF 7.2.1 and 7.12.1",
    domain=((-2, 4),),
    analytic=True,
)
dawsn = special(
    "dawsn",
    lambda z: _far(
        z,
        (jnp.abs(z) > 50) & (jnp.imag(z) == 0),
        lambda z: -_tail(z, 1),
        lambda z: 1 - 2 * z * dawsn(z),
    ),
    source="DLMF 7.2.5 and 7.12.1",
    domain=((-4, 4),),
    analytic=True,
)


def _is_far_up(z):
    return (jnp.abs(z) > 50) & (jnp.imag(z) >= 0)


def _wofz(z):
    return _far(
        z,
        _is_far_up(z),
        lambda z: -2j / ROOT * _tail(z, 1),
        lambda z: 2j / ROOT - 2 * z * wofz(z),
    )


wofz = special(
    "wofz",
    _wofz,
    source="DLMF 7.10.2 and 7.12.1",
    domain=((-4, 4),),
    analytic=True,
)
erfinv = special(
    "erfinv", lambda y: ROOT / 2 * jnp.exp(erfinv(y) ** 2), source=ERF, domain=((-0.95, 0.95),)
)
erfcinv = special(
    "erfcinv", lambda y: -ROOT / 2 * jnp.exp(erfcinv(y) ** 2), source=ERF, domain=((0.05, 1.95),)
)


def _voigt(x, sigma, gamma):
    """V = Re w(z) / (sigma sqrt(2 pi)) with z = (x + i gamma) / (sigma sqrt 2)."""
    sigma = jnp.where(sigma == 0, 1, sigma)
    z = (x + 1j * gamma) / (sigma * np.sqrt(2))
    return z, _wofz(z), 1 / (sigma * np.sqrt(2 * np.pi)), sigma


def _where_narrow(sigma, x, gamma, narrow, wide):
    """At sigma = 0 by the heat equation, in powers of sigma: V = Re(i/z + ...)/π, z = x + iγ."""
    none = sigma == 0
    lorentzian = jnp.where(none, x + 1j * gamma, 1j)
    return jnp.where(none, jnp.real(narrow(lorentzian, jnp.where(none, sigma, 0))) / np.pi, wide)


def _lorentzian(z, sigma):
    return -1j / z**2 - 3j * sigma**2 / z**4 - 15j * sigma**4 / z**6


def _voigt_in_x(x, sigma, gamma):
    _, slope, scale, width = _voigt(x, sigma, gamma)
    wide = jnp.real(slope) * scale / (width * np.sqrt(2))
    return _where_narrow(sigma, x, gamma, _lorentzian, wide)


def _voigt_in_sigma(x, sigma, gamma):
    z, _, scale, width = _voigt(x, sigma, gamma)
    both = _far(  # w + z w'
        z,
        _is_far_up(z),
        lambda z: -2j / (ROOT * z) * _tail(z, 1, lambda k: k),
        lambda z: wofz(z) + z * _wofz(z),
    )
    return _where_narrow(
        sigma,
        x,
        gamma,
        lambda z, sigma: 2j * sigma / z**3 + 12j * sigma**3 / z**5,
        -jnp.real(both) * scale / width,
    )


def _voigt_in_gamma(x, sigma, gamma):
    _, slope, scale, width = _voigt(x, sigma, gamma)
    wide = -jnp.imag(slope) * scale / (width * np.sqrt(2))
    return _where_narrow(sigma, x, gamma, lambda *of: 1j * _lorentzian(*of), wide)


voigt_profile = special(
    "voigt_profile",
    _voigt_in_x,
    _voigt_in_sigma,
    _voigt_in_gamma,
    source="DLMF 7.19.1 and 7.10.2",
    domain=((-4, 4), (0.5, 3), (0.2, 3)),
)
owens_t = special(
    "owens_t",
    lambda h, a: -jnp.exp(-(h**2) / 2) * erf(h * a / np.sqrt(2)) / (2 * np.sqrt(2 * np.pi)),
    lambda h, a: jnp.exp(-(h**2) * (1 + a**2) / 2) / (2 * np.pi * (1 + a**2)),
    source="its integral (Owen 1956)",
    domain=((-3, 3), (-3, 3)),
)

# Fresnel integrals ------------------------------------------------------------------------------

fresnel = special(
    "fresnel",
    lambda z: (jnp.sin(np.pi / 2 * z**2), jnp.cos(np.pi / 2 * z**2)),
    source="DLMF 7.2.7 and 7.2.8",
    domain=((-4, 4),),
    analytic=True,
)


def _modified_fresnel(x, k):
    """K is w(z)/2 with z = exp(i π/4) x, of which nothing cancels far right.

    Nor does the equation of K far left, where w would lose the phase of z².
    """
    right, turn = x > 0, np.exp(1j * np.pi / 4)
    slope = turn / 2 * _wofz(turn * jnp.where(right, x, 0))
    return -jnp.exp(1j * x**2), jnp.where(right, slope, -2j * x * k - turn.conj() / ROOT)


MODIFIED = "DLMF 7.2.6 (scaled), 7.5.1 and 7.10.2"
# their domain: SciPy 1.18 is wrong for negative numbers
modfresnelp = special(
    "modfresnelp",
    lambda x: _modified_fresnel(x, modfresnelp(x)[1]),
    source=MODIFIED,
    domain=((0.1, 3),),
)
modfresnelm = special(  # the complex conjugate
    "modfresnelm",
    lambda x: tuple(map(jnp.conj, _modified_fresnel(x, modfresnelm(x)[1].conj()))),
    source=MODIFIED,
    domain=((0.1, 3),),
)

# Exponential integrals --------------------------------------------------------------------------

exp1 = special(
    "exp1", lambda z: -jnp.exp(-z) / z, source="DLMF 6.2.1", domain=((0.1, 10),), analytic=True
)
expi = special(
    "expi", lambda x: jnp.exp(x) / x, source="DLMF 6.2.5", domain=((0.1, 10),), analytic=True
)


def _expn(n, x):
    y = jnp.where(n == 0, x, 1)
    zeroth = -jnp.exp(-y) * (1 / y + 1 / y**2)
    return jnp.where(n == 0, zeroth, -expn(jnp.maximum(n - 1, 0), x))


expn = special("expn", None, _expn, source="DLMF 8.19.13", domain=(integers(0, 8), (0.1, 10)))
sici = special(
    "sici",
    lambda x: (spherical_jn(0, x), jnp.cos(x) / x),
    source="DLMF 6.2.9 and 6.2.13",
    domain=((0.1, 10),),
    analytic=True,
)
shichi = special(
    "shichi",
    lambda x: (spherical_in(0, x), jnp.cosh(x) / x),
    source="DLMF 6.2.15 and 6.2.16",
    domain=((0.1, 10),),
    analytic=True,
)


def _spence(z):
    """log(z)/(1-z); near 1, where that is 0/0, -2F1(1, 1; 2; 1-z) (DLMF 15.4.1)."""
    near = abs(1 - z) < 0.1
    u, away = jnp.where(near, 1 - z, 0), jnp.where(near, 0.5, z)
    return jnp.where(near, -hyp2f1(1.0, 1.0, 2.0, u), jnp.log(away) / (1 - away))


spence = special("spence", _spence, source="DLMF 25.12.2", domain=((0.05, 8),), analytic=True)
