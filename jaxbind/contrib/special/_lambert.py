"""Lambert W and the Wright omega function: DLMF 4.13."""

from __future__ import annotations

import jax.numpy as jnp
import scipy.special

from jaxbind.contrib.special._table import integers, special


def _in_power(w):
    """w / (1 + w), which goes to 1 with w, in a form of which the derivative does not cancel."""
    large = abs(w) > 1
    small, inverse = jnp.where(large, 0, w), 1 / jnp.where(large, w, 1)
    return jnp.where(large, 1 / (1 + inverse), small / (1 + small))


wrightomega = special(
    "wrightomega",
    lambda z: _in_power(wrightomega(z)),
    source="DLMF 4.13.4, with z -> exp(z)",
    domain=((-4, 8),),
    analytic=True,
)


def _lambertw(z, k=0):
    return scipy.special.lambertw(z, k)


_lambertw.__name__ = "lambertw"


def _in_z(z, k):
    w = lambertw(z, k)
    return jnp.exp(-w) / (1 + w)


lambertw = special(
    _lambertw,
    _in_z,
    None,
    source="DLMF 4.13.4",
    domain=((0.1, 8), integers(-1, 1)),
    analytic=True,
    signature="(),()->()",
    dtype=complex,
)
