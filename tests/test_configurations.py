"""Bindings compiled ahead of time, traced, not compiled at all, and under JAX's options."""

import foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from amount import every
from comparing import close, nonlinear, split, tangents_of
from reference import ALL, Case, named
from transformations import WRAPPERS, configured, first_derivatives

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("case", ALL, ids=str)
def test_eval_shape(case: Case):
    args = case.of(4)

    def shapes(function):
        found = jax.eval_shape(first_derivatives(function, case.argnums), *args)
        return jax.tree.map(lambda s: (s.shape, s.dtype), found)

    assert shapes(case.bound) == shapes(case.twin)


@pytest.mark.parametrize("case", named("blend", "pick", "mix"), ids=str)
def test_ahead_of_time(case: Case):
    args = case.of(5)
    every = first_derivatives(case.bound, case.argnums)
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), args)
    compiled = jax.jit(every).lower(*structs).compile()
    close(compiled(*args), jax.jit(every)(*args))
    close(compiled(*case.of(6)), jax.jit(first_derivatives(case.twin, case.argnums))(*case.of(6)))


@pytest.mark.parametrize("case", named("blend", "pick", "mix"), ids=str)
def test_jaxpr(case: Case):
    """A jaxpr, evaluated later, under other transformations."""
    args, around = split(case.of(7), case.argnums)
    closed = jax.make_jaxpr(around(case.bound))(*args)

    def replayed(*args):
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *jax.tree.leaves(args))

    def gradient(function):
        loss = nonlinear(function)
        return jax.jit(jax.grad(loss, range(len(args)), allow_int=True))(*args)

    close(gradient(replayed), gradient(around(case.twin)))


@pytest.mark.parametrize(
    ("case", "wrap"),
    [(c, w) for c in named("pick") for w in ("jit", "scan", "cond")]
    + [(c, "jit") for c in named("product", "hypot", "gather", "blend", "mix", "swirl", "phase")],
    ids=str,
)
def test_disabled_jit(case: Case, wrap):
    args = case.of(8)
    with jax.disable_jit():
        got = first_derivatives(WRAPPERS[wrap](case.bound), case.argnums)(*args)
    close(got, jax.jit(first_derivatives(WRAPPERS[wrap](case.twin), case.argnums))(*args))


@pytest.mark.parametrize(
    "case",
    named("product", "decay", "polar", "power", "matvec", "combine", "blend", "pick", "mix")
    + named("wide", "swirl", "solve", "finite-difference", "complex-step", "from-vjp")
    + named("from-jvp", "real-fourier", "stretch", "phase"),
    ids=str,
)
def test_strict_promotion_and_checks(case: Case):
    """Nothing that the package adds promotes dtypes, or holds a NaN on the way."""
    args = case.of(9)

    def every(*args):
        chosen, around = split(args, case.argnums)
        results, tangents = jax.jvp(around(case.bound), chosen, tangents_of(chosen))
        _, pull = jax.vjp(around(case.bound), *chosen)
        return results, tangents, pull(tangents_of(results))

    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_nans(True),
        jax.check_tracer_leaks(True),
        configured("jax_enable_checks", True),
    ):
        jax.jit(every)(*args)


def test_a_nan_is_found_where_it_is_made():
    root = jaxbind.bind(lambda x: np.sqrt(x), "()->()")
    root.def_partials(lambda x: 0.5 / root(x))
    with np.errstate(invalid="ignore"), jax.debug_nans(True):
        for f in (root, jax.jit(root), jax.grad(root), jax.jit(jax.grad(root))):
            with pytest.raises(FloatingPointError):
                f(-1.0)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("wrap", every(2, ["jit", "checkpoint", "scan", "cond", "custom_vjp"]))
@pytest.mark.parametrize("case", named("blend", "pick"), ids=str)
def test_both_linearizations(case: Case, wrap, direct):
    option = "jax_use_direct_linearize"
    if not hasattr(jax.config, option):
        pytest.skip("this JAX has one way to linearize")
    args = case.of(10)

    def gradient(function):
        loss = nonlinear(WRAPPERS[wrap](function))
        return jax.jit(jax.grad(loss, case.argnums))(*args)

    with configured(option, direct):
        got = gradient(case.bound)
        second = None
        if case.order > 1 and wrap == "jit":
            second = jax.jit(jax.hessian(nonlinear(case.bound), case.argnums))(*args)
    close(got, gradient(case.twin))
    if second is not None:
        want = jax.jit(jax.hessian(nonlinear(case.twin), case.argnums))(*args)
        close(second, want, 1e-8)


def test_one_function_in_both_precisions():
    """Compiled for the one, then for the other, then again: neither gets the other's program."""
    f = jax.jit(jax.grad(lambda x: jnp.sum(foreign.product(x, x))))
    for enabled in (True, False, True, False):
        with jax.enable_x64(enabled):
            x = np.linspace(0.1, 1, 3)
            close(f(x), jnp.asarray(3 * x**2), 1e-6)
