"""Bindings inside JAX's transformations, and transformations inside one another."""

import contextlib
import functools
import gc

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from jax.sharding import PartitionSpec
from reference import ALL, REAL, Case, close, is_inexact, named, nonlinear, normal, tangents_of

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

SOME = named("blend", "pick", "mix")
some_cases = pytest.mark.parametrize("case", SOME, ids=str)


@contextlib.contextmanager
def configured(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def scaled(args, factor):
    return jax.tree.map(lambda x: x * factor if is_inexact(x) else x, args)


# Around a binding ---------------------------------------------------------------------------------


def in_scan(function):
    """Over stacked operands, and a carry that depends on the results."""

    def scanned(*args):
        def body(carry, factor):
            results = function(*scaled(args, factor + 0.1 * jnp.tanh(carry)))
            leaves = [x for x in jax.tree.leaves(results) if is_inexact(x)]
            return sum(jnp.sum(x) for x in leaves), results

        return jax.lax.scan(body, 0.0, jnp.linspace(0.5, 1.5, 3))

    return scanned


def in_reversed_unrolled_scan(function):
    def scanned(*args):
        def body(carry, _):
            return scaled(carry, 0.9), function(*carry)

        return jax.lax.scan(body, args, None, length=3, reverse=True, unroll=2)[1]

    return scanned


def in_cond(function):
    def chosen(*args):
        first = jnp.sum(jax.tree.leaves(args)[0])
        return jax.lax.cond(first > -1e9, function, lambda *a: function(*scaled(a, 2.0)), *args)

    return chosen


def in_switch(function):
    def chosen(*args):
        branches = [lambda *a, k=k: function(*scaled(a, k)) for k in (1.0, 2.0, 3.0)]
        return jax.lax.switch(jnp.asarray(1), branches, *args)

    return chosen


def in_fori_loop(function):
    def looped(*args):
        def body(i, carry):
            results = function(*scaled(args, 1 + 0.1 * i))
            return jax.tree.map(lambda c, r: c + r if is_inexact(r) else r, carry, results)

        return jax.lax.fori_loop(0, 3, body, function(*args))

    return looped


def in_map(function):
    def mapped(*args):
        stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), args)
        return jax.lax.map(lambda a: function(*a), stacked)

    return mapped


def in_map_of_batches(function):
    def mapped(*args):
        stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), args)
        return jax.lax.map(lambda a: function(*a), stacked, batch_size=2)

    return mapped


def in_custom_vjp(function):
    """Whose own pullback is the binding's."""

    @jax.custom_vjp
    def around(*args):
        return function(*args)

    around.defvjp(lambda *args: jax.vjp(function, *args), lambda pull, cts: pull(cts))
    return around


def in_custom_jvp(function):
    @jax.custom_jvp
    def around(*args):
        return function(*args)

    around.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return around


def linearized(function):
    """The value and the tangent along fixed directions, through `linearize`."""

    def along(*args):
        value, push = jax.linearize(function, *args)
        return value, push(*tangents_of(args))

    return along


def with_closed_over_tracers(function):
    """All operands but the first are captured."""

    def outer(*args):
        return jax.jit(lambda first: function(first, *args[1:]))(args[0])

    return outer


def checkpoint(policy):
    return functools.partial(jax.checkpoint, policy=policy)


policies = jax.checkpoint_policies
WRAPPERS = {
    "jit": jax.jit,
    "nested-jit": lambda f: jax.jit(lambda *a: jax.jit(jax.jit(f))(*a)),
    "checkpoint": jax.checkpoint,
    "checkpoint-everything": checkpoint(policies.everything_saveable),
    "checkpoint-dots": checkpoint(policies.dots_saveable),
    "checkpoint-in-scan": lambda f: in_scan(jax.checkpoint(f)),
    "scan": in_scan,
    "reversed-scan": in_reversed_unrolled_scan,
    "cond": in_cond,
    "switch": in_switch,
    "fori_loop": in_fori_loop,
    "map": in_map,
    "map-of-batches": in_map_of_batches,
    "custom_vjp": in_custom_vjp,
    "custom_jvp": in_custom_jvp,
    "linearize": linearized,
    "closure": with_closed_over_tracers,
}

NO_FORWARD = {"custom_vjp"}


def first_derivatives(function, case: Case, forward=True):
    """Value, tangent and gradient, in one program."""

    def every(*args):
        chosen, around = reference.split(args, case.argnums)
        found = [around(function)(*chosen)]
        if forward:
            found.append(jax.jvp(around(function), chosen, tangents_of(chosen))[1])
        if case.reverse:
            loss = nonlinear(around(function))
            found.append(jax.grad(loss, range(len(chosen)), allow_int=True)(*chosen))
        return found

    return every


@pytest.mark.parametrize(
    ("case", "wrap"),
    [(c, w) for c in SOME for w in WRAPPERS if w != "linearize" or c.order > 1],
    ids=str,
)
def test_first_derivatives_around(case: Case, wrap):
    forward = wrap not in NO_FORWARD
    args = case.of()

    def every(function):
        return jax.jit(first_derivatives(WRAPPERS[wrap](function), case, forward))(*args)

    close(every(case.bound), every(case.twin))


@pytest.mark.parametrize(
    ("case", "wrap"),
    [(c, w) for c in named("blend") for w in ("checkpoint", "scan", "cond", "custom_vjp")]
    + [(c, w) for c in named("triple") for w in ("linearize", "custom_jvp")],
    ids=str,
)
def test_second_derivatives_around(case: Case, wrap):
    args = case.of(1)

    def hessian(function):
        loss = nonlinear(WRAPPERS[wrap](function))
        outer = jax.jacrev if wrap in NO_FORWARD else jax.jacfwd
        return jax.jit(outer(jax.grad(loss, case.argnums), case.argnums))(*args)

    close(hessian(case.bound), hessian(case.twin), 1e-8)


@pytest.mark.parametrize("wrap", ["scan", "cond", "custom_jvp", "map-of-batches"])
@pytest.mark.parametrize("case", named("blend", "mix"), ids=str)
def test_maps_around(case: Case, wrap):
    """A batch of size 3 of what is itself a loop; the first argument is not mapped."""
    single, batch = case.of(2), case.of(3, batch=3)
    axes = (None,) + (0,) * (len(single) - 1)
    args = (single[0], *batch[1:])

    def every(function):
        gradient = jax.grad(nonlinear(WRAPPERS[wrap](function)), case.argnums, allow_int=True)
        return jax.jit(jax.vmap(gradient, in_axes=axes))(*args)

    def inexact(tree):
        return [x for x in jax.tree.leaves(tree) if x.dtype != jax.dtypes.float0]

    close(inexact(every(case.bound)), inexact(every(case.twin)))


def test_while_loop_forward():
    def count(function):
        def run(x, y):
            def body(carry):
                i, x = carry
                return i + 1, jnp.cos(function(x, y))

            return jax.lax.while_loop(lambda c: c[0] < 4, body, (0, x))[1]

        return jax.jit(lambda *a: jax.jvp(run, a, (1.0, 2.0)))

    close(
        count(reference.product)(0.7, 0.3),
        count(lambda a, b: a * b**2)(0.7, 0.3),
    )


def test_a_mapped_predicate():
    """vmap turns the condition into a selection: both branches run."""

    def chosen(function):
        def f(x, y):
            return jax.lax.cond(x > 0, function, lambda x, y: -function(y, x), x, y)

        return jax.jit(jax.vmap(jax.grad(f, (0, 1)), in_axes=(0, None)))

    x = jnp.linspace(-1, 1, 4)
    close(chosen(reference.product)(x, 2.0), chosen(lambda a, b: a * b**2)(x, 2.0))


def test_a_custom_rule_that_is_not_the_binding_s():
    @jax.custom_vjp
    def outer(x):
        return reference.sine(x)

    outer.defvjp(lambda x: (reference.sine(x), x), lambda x, ct: (3 * reference.cosine(x) * ct,))
    close(jax.grad(outer)(0.3), 3 * jnp.cos(0.3))
    close(jax.grad(jax.grad(outer))(0.3), -3 * jnp.sin(0.3))


def test_a_captured_tracer_beside_a_differentiated_one():
    """grad inside vmap inside grad: tracers of three levels meet in one call."""

    def nested(function):
        def outer(c):
            def middle(x):
                return jax.grad(lambda y: function(x * c, y) * c)(0.5 * x)

            return jnp.sum(jax.vmap(middle)(jnp.arange(1.0, 4.0)))

        return jax.jit(jax.grad(outer))(0.7)

    close(nested(reference.hypot), nested(jnp.hypot))


def test_perturbations_are_not_confused():
    """d/dx x * (d/dy x sin(y)) at y = x, with the same name for both (Siskind and Pearlmutter)."""

    def f(x):
        return x * jax.jvp(lambda y: x * reference.sine(y), (x,), (1.0,))[1]

    def twin(x):
        return x * jax.jvp(lambda y: x * jnp.sin(y), (x,), (1.0,))[1]

    close(jax.jvp(f, (0.7,), (1.0,)), jax.jvp(twin, (0.7,), (1.0,)))
    close(jax.grad(f)(0.7), jax.grad(twin)(0.7))


def test_inside_linear_solvers():
    """The binding is the matrix; JAX transposes and differentiates the solver around it."""
    rng = np.random.default_rng(23)
    a = normal(rng, (3, 3))
    a, b = a @ a.T + 4 * jnp.eye(3), normal(rng, (3,))

    def direct(matvec):
        return lambda a, b: jax.lax.custom_linear_solve(
            lambda x: matvec(a, x),
            b,
            lambda _, b: jnp.linalg.solve(a, b),
            lambda _, b: jnp.linalg.solve(a.T, b),
        )

    def iterative(matvec):
        return lambda a, b: jax.scipy.sparse.linalg.cg(lambda x: matvec(a, x), b, tol=1e-14)[0]

    hessian = jax.jit(jax.hessian(nonlinear(direct(reference.matvec)), (0, 1)))(a, b)
    close(hessian, jax.jit(jax.hessian(nonlinear(jnp.linalg.solve), (0, 1)))(a, b), 1e-8)
    gradient = jax.jit(jax.grad(nonlinear(iterative(reference.matvec)), (0, 1)))(a, b)
    close(gradient, jax.jit(jax.grad(nonlinear(jnp.linalg.solve), (0, 1)))(a, b), 1e-8)


def test_vectorized_by_jax():
    rng = np.random.default_rng(24)
    args = normal(rng, (4, 1, 2, 3)), normal(rng, (3, 3))

    def gradient(function):
        vectorized = jnp.vectorize(function, signature="(m,n),(n)->(m)")
        return jax.jit(jax.grad(nonlinear(vectorized), (0, 1)))(*args)

    close(gradient(reference.matvec), gradient(jnp.matmul))


def made_on_the_way(x):
    f = jaxbind.bind(lambda x: x**2, "(n)->(n)")
    f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    f.def_vjp(lambda p, ct: 2 * p[0] * ct)
    return f(x)


def test_a_binding_made_inside_the_traced_function():
    """It is gone when the trace ends; what was traced keeps what it needs."""
    x = jnp.asarray([0.5, -1.0, 2.0])
    for wrap in ("jit", "scan", "cond", "checkpoint", "custom_jvp", "map-of-batches"):
        f, twin = (WRAPPERS[wrap](g) for g in (made_on_the_way, lambda x: x**2))
        gc.collect()
        got = jax.jit(jax.value_and_grad(nonlinear(f)))(x)
        gc.collect()
        close(got, jax.jit(jax.value_and_grad(nonlinear(twin)))(x))


def test_derivatives_outlive_their_binding():
    def made():
        closed = jax.make_jaxpr(jax.grad(nonlinear(made_on_the_way)))(x)
        return (
            jax.vjp(made_on_the_way, x)[1],
            jax.linearize(made_on_the_way, x)[1],
            jax.jit(jax.grad(nonlinear(made_on_the_way))).lower(x),
            lambda x: jax.core.eval_jaxpr(closed.jaxpr, closed.consts, x)[0],
        )

    x = jnp.asarray([0.5, -1.0, 2.0])
    pull, push, lowered, replayed = made()
    gc.collect()
    close(pull(x), (2 * x**2,))
    close(push(x), 2 * x**2)
    close(lowered.compile()(x), jax.grad(nonlinear(lambda x: x**2))(x))
    close(replayed(x), jax.grad(nonlinear(lambda x: x**2))(x))


# Compiled, traced, and not ------------------------------------------------------------------------


@pytest.mark.parametrize("case", ALL, ids=str)
def test_eval_shape(case: Case):
    args = case.of(4)

    def shapes(function):
        found = jax.eval_shape(first_derivatives(function, case), *args)
        return jax.tree.map(lambda s: (s.shape, s.dtype), found)

    assert shapes(case.bound) == shapes(case.twin)


@some_cases
def test_ahead_of_time(case: Case):
    args = case.of(5)
    every = first_derivatives(case.bound, case)
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), args)
    compiled = jax.jit(every).lower(*structs).compile()
    close(compiled(*args), jax.jit(every)(*args))
    close(compiled(*case.of(6)), jax.jit(first_derivatives(case.twin, case))(*case.of(6)))


@some_cases
def test_jaxpr(case: Case):
    """A jaxpr, evaluated later, under other transformations."""
    args, around = reference.split(case.of(7), case.argnums)
    closed = jax.make_jaxpr(around(case.bound))(*args)

    def replayed(*args):
        return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *jax.tree.leaves(args))

    def gradient(function):
        loss = nonlinear(function)
        return jax.jit(jax.grad(loss, range(len(args)), allow_int=True))(*args)

    close(gradient(replayed), gradient(around(case.twin)))


@pytest.mark.parametrize("wrap", ["jit", "scan", "cond"])
@pytest.mark.parametrize("case", named("pick"), ids=str)
def test_disabled_jit(case: Case, wrap):
    args = case.of(8)
    with jax.disable_jit():
        got = first_derivatives(WRAPPERS[wrap](case.bound), case)(*args)
    close(got, jax.jit(first_derivatives(WRAPPERS[wrap](case.twin), case))(*args))


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
        chosen, around = reference.split(args, case.argnums)
        results, tangents = jax.jvp(around(case.bound), chosen, tangents_of(chosen))
        if not case.reverse:
            return results, tangents
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
@pytest.mark.parametrize("wrap", ["jit", "checkpoint", "scan", "cond", "custom_vjp"])
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


@pytest.mark.parametrize("case", named("product", "matvec", "blend", "solve", "fourier"), ids=str)
def test_both_precisions(case: Case, both_x64):
    args = case.of(11)
    got = jax.jit(first_derivatives(case.bound, case))(*args)
    close(got, jax.jit(first_derivatives(case.twin, case))(*args), 1e-9 if both_x64 else 3e-4)


def test_one_function_in_both_precisions():
    """Compiled for the one, then for the other, then again: neither gets the other's program."""
    f = jax.jit(jax.grad(lambda x: jnp.sum(reference.product(x, x))))
    for enabled in (True, False, True, False):
        with jax.enable_x64(enabled):
            x = np.linspace(0.1, 1, 3)
            close(f(x), jnp.asarray(3 * x**2), 1e-6)


# Maps and derivatives -----------------------------------------------------------------------------


def vmap_of_grad(function, case, axes):
    gradient = jax.grad(nonlinear(function), case.argnums, allow_int=True)
    return jax.vmap(gradient, in_axes=axes)


def grad_of_vmap(function, case, axes):
    return jax.grad(nonlinear(jax.vmap(function, in_axes=axes)), case.argnums, allow_int=True)


def vmap_of_jvp_of_vjp(function, case, axes):
    """The pullback, differentiated along everything, for each element of the map."""

    def one(*args):
        chosen, around = reference.split(args, case.argnums)

        def pull(*chosen):
            value, back = jax.vjp(around(function), *chosen)
            return back(tangents_of(value))

        if case.order < 2:
            return pull(*chosen)
        return jax.jvp(pull, chosen, tangents_of(chosen))

    return jax.vmap(one, in_axes=axes)


def nested_vmaps(function, case, axes):
    """The second map is over a factor alone: every operand of it is broadcast in one of them."""
    gradient = jax.grad(nonlinear(function), case.argnums, allow_int=True)

    def inner(*args):
        return jax.vmap(lambda c: gradient(*scaled(args, c)), out_axes=-1)(jnp.arange(1.0, 3.0))

    return jax.vmap(inner, in_axes=axes)


MAPS = {f.__name__: f for f in (vmap_of_grad, grad_of_vmap, vmap_of_jvp_of_vjp, nested_vmaps)}
MAPPED = named(
    "looped", "decay", "matvec", "triple", "gather", "blend", "surface", "pick", "swirl", "solve"
)


@pytest.mark.parametrize("composition", MAPS)
@settings(max_examples=8)
@given(data=st.data())
def test_maps_with_any_axes(composition, data):
    case = data.draw(st.sampled_from(MAPPED))
    size = data.draw(st.sampled_from([1, 2, 3]))
    single, batch = case.of(12), case.of(13, batch=size)
    axes = [data.draw(st.none() | st.integers(-x.ndim - 1, x.ndim)) for x in single]
    if all(axis is None for axis in axes):
        axes[data.draw(st.integers(0, len(axes) - 1))] = 0
    args = tuple(
        one if axis is None else jnp.moveaxis(many, 0, axis)
        for one, many, axis in zip(single, batch, axes, strict=True)
    )

    def run(function):
        return jax.jit(MAPS[composition](function, case, tuple(axes)))(*args)

    close(run(case.bound), run(case.twin), 1e-8)


# Chains -------------------------------------------------------------------------------------------

# Each link makes a real function of the operands from one of them, so that links can follow
# one another in any order.


def link_jit(f, args):
    return jax.jit(f)


def link_checkpoint(f, args):
    return jax.checkpoint(f)


def link_scan(f, args):
    def linked(*args):
        def body(carry, factor):
            return 0.5 * carry + f(*scaled(args, factor)), None

        return jax.lax.scan(body, jnp.zeros(()), jnp.linspace(0.8, 1.2, 2))[0]

    return linked


def link_cond(f, args):
    def linked(*args):
        return jax.lax.cond(jnp.sum(args[0]) > -1e9, f, lambda *a: -f(*a), *args)

    return linked


def link_vmap(axes_of, size):
    def link(f, args):
        axes = axes_of(len(args))

        def linked(*args):
            mapped = [
                x if axis is None else jnp.stack([x * (1 + 0.1 * k) for k in range(size)])
                for x, axis in zip(args, axes, strict=True)
            ]
            return jnp.mean(jax.vmap(f, in_axes=axes)(*mapped))

        return linked

    return link


def link_jvp(f, args):
    return lambda *args: jax.jvp(f, args, tangents_of(args, 14))[1]


def link_linearize(f, args):
    return lambda *args: jax.linearize(f, *args)[1](*tangents_of(args, 15))


def link_grad(f, args):
    def linked(*args):
        gradient = jax.grad(f, range(len(args)))(*args)
        return sum(jnp.vdot(g, t) for g, t in zip(gradient, tangents_of(args, 16), strict=True))

    return linked


def link_grad_of_one(f, args):
    return lambda *args: jnp.sum(jnp.sin(jax.grad(f, len(args) - 1)(*args)))


PLAIN = {
    "jit": link_jit,
    "checkpoint": link_checkpoint,
    "scan": link_scan,
    "cond": link_cond,
    "vmap-all": link_vmap(lambda n: (0,) * n, 2),
    "vmap-first": link_vmap(lambda n: (0,) + (None,) * (n - 1), 3),
    "vmap-last": link_vmap(lambda n: (None,) * (n - 1) + (0,), 2),
    "vmap-of-one": link_vmap(lambda n: (None,) * (n - 1) + (0,), 1),
}
DERIVED = {
    "jvp": link_jvp,
    "linearize": link_linearize,
    "grad": link_grad,
    "grad-of-one": link_grad_of_one,
}
LINKS = PLAIN | DERIVED
CHAINED = named("matvec", "triple", "polar", "hypot", "blend", "surface", "solve", "traced-forward")


@st.composite
def chains(draw):
    case = draw(st.sampled_from(CHAINED))
    names = draw(st.lists(st.sampled_from(sorted(LINKS)), min_size=2, max_size=4))
    order = 0
    kept = []
    for name in names:
        order += name in DERIVED
        if order <= min(case.order, 3) or name not in DERIVED:
            kept.append(name)
    return case, kept


@settings(max_examples=20)
@given(chain=chains())
def test_chains_of_transformations(chain):
    case, names = chain
    args = case.of(17)

    def run(function):
        f = nonlinear(function)
        for name in names:
            f = LINKS[name](f, args)
        return jax.jit(f)(*args)

    close(run(case.bound), run(case.twin), 1e-7)


# Devices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("case", named("product", "matvec", "blend", "pick"), ids=str)
def test_shard_map(case: Case, check_vma, devices):
    """The first argument is split, the others are not: their cotangents are summed over devices."""
    batch, single = case.of(18, batch=2 * devices), case.of(19)
    args = (batch[0], *single[1:])
    axes = (0,) + (None,) * (len(single) - 1)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("i",))
    split = (PartitionSpec("i"),) + (PartitionSpec(),) * (len(single) - 1)

    def total(function):
        return nonlinear(jax.vmap(function, in_axes=axes))

    def sharded(function):
        return jax.shard_map(
            lambda *a: jax.lax.psum(total(function)(*a), "i"),
            mesh=mesh,
            in_specs=split,
            out_specs=PartitionSpec(),
            check_vma=check_vma,
        )

    def every(f):
        chosen, around = reference.split(args, case.argnums)
        return (
            jax.jit(jax.grad(f, case.argnums))(*args),
            jax.jit(lambda *c: jax.jvp(around(f), c, tangents_of(c)))(*chosen),
        )

    got, want = every(sharded(case.bound)), every(total(case.twin))
    close(jax.device_get(got), jax.device_get(want), 1e-8)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", named("triple", "blend"), ids=str)
def test_gradient_inside_shard_map(case: Case, last, check_vma):
    """Of a part of the arguments, by each device; with checks on, JAX sums over devices itself."""
    single, batch = case.of(25), case.of(26, batch=2)
    args = (single[0], batch[1], single[2])
    axes = (None, 0, None)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("i",))
    argnums = (2,) if last else (0, 1)

    def sharded(function):
        def body(*args):
            gradient = jax.grad(nonlinear(jax.vmap(function, in_axes=axes)), argnums)(*args)
            return [jax.lax.psum(jnp.sum(g**2), "i") for g in gradient]

        return jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("i"), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=check_vma,
        )

    got, want = (jax.jit(sharded(f))(*args) for f in (case.bound, case.twin))
    close(jax.device_get(got), jax.device_get(want), 1e-8)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("case", named("matvec", "blend"), ids=str)
def test_hessian_inside_shard_map(case: Case, check_vma):
    batch, single = case.of(20, batch=2), case.of(21)
    args = (single[0], *batch[1:])
    axes = (None,) + (0,) * (len(single) - 1)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("i",))

    def hessian(function):
        return jax.vmap(jax.hessian(nonlinear(function), case.argnums), in_axes=axes)

    sharded = jax.shard_map(
        hessian(case.bound),
        mesh=mesh,
        in_specs=(PartitionSpec(),) + (PartitionSpec("i"),) * (len(single) - 1),
        out_specs=PartitionSpec("i"),
        check_vma=check_vma,
    )
    close(jax.jit(sharded)(*args), jax.jit(hessian(case.twin))(*args), 1e-8)


@pytest.mark.parametrize("case", [c for c in REAL if c.name in ("looped", "shifted")], ids=str)
def test_explicit_loop_dimensions_inside_jit(case: Case):
    """Loop dimensions by shape and by vmap are the same."""
    rng = np.random.default_rng(22)
    x, y = normal(rng, (3, 1)), normal(rng, (2,))

    def by_shape(x, y):
        return case.bound(x, y)

    def by_maps(x, y):
        return jax.vmap(jax.vmap(case.bound, (None, 0)), (0, None))(x[:, 0], y)

    def gradient(f):
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1)))(x, y)

    close(gradient(by_shape), gradient(by_maps), 1e-12)
