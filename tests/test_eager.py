"""Transformations outside jit: compiled once, and freed with the binding."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbind

TRANSFORMED = {
    "vmap": lambda f, x: jax.vmap(f)(jnp.stack([x, x])),
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "grad": lambda f, x: jax.grad(lambda y: f(y).sum())(x),
    "hessian-free": lambda f, x: jax.jvp(jax.grad(lambda y: f(y).sum()), (x,), (x,)),
}


def square():
    f = jaxbind.bind(lambda x: x**2, "(n)->(n)")
    f.def_partials(lambda x: 2 * x)
    return f


@pytest.mark.parametrize("transform", TRANSFORMED.values(), ids=TRANSFORMED)
def test_eager_transformations_let_go_of_the_function(transform):
    def used():
        f = square()
        transform(f, jnp.ones(3))
        return weakref.ref(f.function)

    functions = [used() for _ in range(3)]
    gc.collect()
    assert [r() for r in functions] == [None] * 3


@pytest.mark.parametrize("transform", TRANSFORMED.values(), ids=TRANSFORMED)
def test_eager_transformations_compile_once(transform, caplog):
    f, x = square(), jnp.ones(3)
    transform(f, x)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        transform(f, x)
    assert not [r for r in caplog.records if "jaxbind" in r.getMessage()]


def test_a_derivative_outlives_its_binding_in_eager_calls():
    pushforward = square().def_jvp(lambda p, t: 2 * p[0] * t[0])
    gc.collect()
    x = jnp.arange(3.0)
    got = jax.vmap(lambda t: pushforward((x,), (t,)))(jnp.eye(3))
    np.testing.assert_array_equal(got, np.diag(2 * np.arange(3.0)))


def test_disable_jit():
    with jax.disable_jit():
        got = jax.vmap(square())(jnp.ones((2, 3)))
    np.testing.assert_array_equal(got, np.ones((2, 3)))


def test_debug_nans_ends_and_names_the_binding():
    f = jaxbind.bind(lambda x: x * np.float32(np.nan), "(n)->(n)", name="spoilt")
    with jax.debug_nans(True):
        for function in (f, jax.vmap(f), jax.jit(f)):
            with pytest.raises(FloatingPointError, match="^spoilt: invalid value"):
                function(jnp.ones((2, 3)))


def test_an_unhashable_default_is_left_to_the_function():
    def look_up(x, *, table, k=2):
        return k * table[0] * x

    f = jaxbind.bind(functools.partial(look_up, table=np.float32([3, 4])), "(n)->(n)")
    f.def_vjp(lambda primals, ct, *, k: 3 * k * ct)
    x = jnp.ones(2)
    np.testing.assert_array_equal(f(x), [6, 6])
    np.testing.assert_array_equal(jax.grad(lambda x: f(x, k=3).sum())(x), [9, 9])


class Unprintable:
    def __repr__(self):
        raise RuntimeError


def test_values_that_cannot_be_shown():
    f = jaxbind.bind(lambda x: Unprintable(), "(n)->(n)")
    with pytest.raises(jax.errors.JaxRuntimeError, match="returned <Unprintable object>"):
        f(jnp.ones(2))
    with pytest.raises(TypeError, match="keyword argument k=<Unprintable object>"):
        f(jnp.ones(2), k=Unprintable())
