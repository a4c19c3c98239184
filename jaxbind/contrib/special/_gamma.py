"""The gamma function and its kin: DLMF chapters 5, 8 and 25.

Incomplete functions are differentiated with respect to their last argument: with respect to the
parameters there is no closed form.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxbind.contrib.special._elementary import xlog1py, xlogy
from jaxbind.contrib.special._table import integers, real_only, special

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
poch = special(
    "poch",
    lambda z, m: poch(z, m) * (psi(z + m) - psi(z)),
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
binom = special(
    "binom",
    lambda x, y: binom(x, y) * (psi(x + 1) - psi(x - y + 1)),
    lambda x, y: binom(x, y) * (psi(x - y + 1) - psi(y + 1)),
    source="DLMF 1.2.6 and 5.2.2",
    domain=((6, 12), (0.1, 5)),
)

# Incomplete gamma functions ---------------------------------------------------------------------

INCOMPLETE_GAMMA = "DLMF 8.8.13"


def gamma_density(a, x):
    """x^(a-1) exp(-x) / Γ(a)"""
    return jnp.exp(xlogy(a - 1, x) - x - gammaln(a))


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
    return jnp.exp(xlogy(a - 1, x) + xlog1py(b - 1, -x) - betaln(a, b))


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


def _hurwitz(x, q):
    return scipy.special.zeta(x, q)


_hurwitz.__name__ = "zeta"
zeta = special(
    _hurwitz,
    None,
    lambda x, q: -x * zeta(x + 1, q),
    source="DLMF 25.11.17",
    domain=((1.5, 10), (0.2, 10)),
    signature="(),()->()",
)
