"""How results are compared, and operands and tangents drawn."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), np.inexact)


def normal(rng: np.random.Generator, shape: tuple = (), dtype: Any = float) -> np.ndarray:
    draw = np.asarray(rng.standard_normal(shape))
    if jnp.issubdtype(dtype, np.complexfloating):
        draw = draw + 1j * np.asarray(rng.standard_normal(shape))
    return jnp.asarray(draw, dtype)


def tangents_of(tree: Any, seed: int = 1) -> Any:
    """Random tangents (or cotangents) of values: float0 for integers and booleans."""
    rng = np.random.default_rng([seed, 21])
    return jax.tree.map(
        lambda x: (
            normal(rng, jnp.shape(x), jnp.result_type(x))
            if is_inexact(x)
            else np.zeros(jnp.shape(x), jax.dtypes.float0)
        ),
        tree,
    )


def split(args: tuple, argnums: tuple[int, ...]) -> tuple[tuple, Callable]:
    """The arguments to differentiate, and how to put the others back around them."""

    def fixed(function: Callable) -> Callable:
        def inner(*chosen: Any) -> Any:
            full = list(args)
            for position, value in zip(argnums, chosen, strict=True):
                full[position] = value
            return function(*full)

        return inner

    return tuple(args[i] for i in argnums), fixed


def inner(a: Any, b: Any) -> Any:
    """The real inner product under which JAX's transpose (no conjugation) is the transpose."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(
        np.sum(np.asarray(x) * np.asarray(y)).real for x, y in pairs if x.dtype != jax.dtypes.float0
    )


def close(got: Any, want: Any, rtol: float = 1e-9) -> None:
    """The same structure, dtypes, shapes, and values."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jnp.shape(g) == jnp.shape(w)
        assert jnp.result_type(g) == jnp.result_type(w)
        if jnp.result_type(w) == jax.dtypes.float0:
            continue
        scale = max(1.0, float(np.max(np.abs(w), initial=0.0)))
        np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol * scale)


def nonlinear(function: Callable) -> Callable:
    """A real number from any results, nonlinear in every inexact leaf of them."""

    def total(*args: Any) -> Any:
        leaves = [x for x in jax.tree.leaves(function(*args)) if is_inexact(x)]
        terms = [
            jnp.sum(jnp.sin(x.real + k) + (jnp.cos(2 * x.imag) if jnp.iscomplexobj(x) else 0))
            for k, x in enumerate(leaves)
        ]
        return sum(terms[1:], start=terms[0])

    return total


def reals(*shapes: tuple) -> Callable[[np.random.Generator], tuple]:
    return lambda rng: tuple(normal(rng, s) for s in shapes)


def complexes(*shapes: tuple) -> Callable[[np.random.Generator], tuple]:
    return lambda rng: tuple(normal(rng, s, complex) for s in shapes)
