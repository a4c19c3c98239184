"""Ways to call a function, and the text of the error of a call, for the tests of errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbind

x = np.arange(3.0)


def elementwise(function, **options):
    return jaxbind.bind(function, "(n)->(n)", **options)


def message(function, *operands, error=jax.errors.JaxRuntimeError):
    """The text of the error of a call, as the user reads it."""
    with pytest.raises(error) as caught:
        jax.block_until_ready(function(*operands))
    # JAX before 0.10 says so in front of what was computed asynchronously
    return str(caught.value).replace("Buffer Definition Event: ", "", 1)


def heavy(f):
    """``f`` after work that XLA does on its own threads, so that it runs asynchronously."""
    return jax.jit(lambda v: f(jnp.sort(jnp.sin(jnp.arange(300_000.0)))[:1] * 0 + v))


ROUTES = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "vmap": lambda f: lambda v: jax.vmap(f)(jnp.stack([v, v])),
    "jit of vmap": lambda f: jax.jit(lambda v: jax.vmap(f)(jnp.stack([v, v]))),
    "scan": lambda f: jax.jit(lambda v: jax.lax.scan(lambda c, _: (f(c), 0), v, None, 3)),
    "cond": lambda f: jax.jit(lambda v: jax.lax.cond(v[0] < 9, f, lambda v: v, v)),
    "asynchronous": heavy,
    "ahead of time": lambda f: jax.jit(f).lower(x).compile(),
}
routes = pytest.mark.parametrize("route", ROUTES)
