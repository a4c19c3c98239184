"""Lambert W and the Wright omega function: DLMF 4.13."""

from __future__ import annotations

import jax.numpy as jnp
import scipy.special

from jaxbind.contrib.special._table import integers, special

wrightomega = special(
    "wrightomega",
    lambda z: wrightomega(z) / (1 + wrightomega(z)),
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
