"""Bindings inside JAX's transformations, and transformations inside one another."""

import gc

import foreign
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from amount import every
from comparing import close, is_inexact, nonlinear, normal, split, tangents_of
from hypothesis import given, settings
from reference import ALL, REAL, Case, named
from transformations import NESTS, NO_FORWARD, WRAPPERS, first_derivatives, scaled

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

SOME = named("blend", "pick", "mix")

# Around a binding ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "wrap"),
    every(3, [(c, w) for c in SOME for w in WRAPPERS if w != "linearize" or c.order > 1]),
    ids=str,
)
def test_first_derivatives_around(case: Case, wrap):
    forward = wrap not in NO_FORWARD
    args = case.of()

    def every(function):
        return jax.jit(first_derivatives(WRAPPERS[wrap](function), case.argnums, forward))(*args)

    close(every(case.bound), every(case.twin))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "nest"),
    [
        (c, n)
        for i, c in enumerate(ALL)
        for j, n in enumerate(NESTS)
        if c not in SOME and (i + j) % 3
    ],
    ids=str,
)
def test_first_derivatives_inside_several(case: Case, nest):
    """Every kind of function in two of three nests of transformations."""
    args, around = split(case.of(27), case.argnums)

    def every(function):
        nested = NESTS[nest](around(function))
        return jax.jit(first_derivatives(nested, range(len(args))))(*args)

    close(every(case.bound), every(case.twin), case.rtol)


@pytest.mark.slow
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
        count(foreign.product)(0.7, 0.3),
        count(lambda a, b: a * b**2)(0.7, 0.3),
    )


def test_a_mapped_predicate():
    """vmap turns the condition into a selection: both branches run."""

    def chosen(function):
        def f(x, y):
            return jax.lax.cond(x > 0, function, lambda x, y: -function(y, x), x, y)

        return jax.jit(jax.vmap(jax.grad(f, (0, 1)), in_axes=(0, None)))

    x = jnp.linspace(-1, 1, 4)
    close(chosen(foreign.product)(x, 2.0), chosen(lambda a, b: a * b**2)(x, 2.0))


def test_a_custom_rule_that_is_not_the_binding_s():
    @jax.custom_vjp
    def outer(x):
        return foreign.sine(x)

    outer.defvjp(lambda x: (foreign.sine(x), x), lambda x, ct: (3 * foreign.cosine(x) * ct,))
    close(jax.grad(outer)(0.3), 3 * jnp.cos(0.3))
    close(jax.grad(jax.grad(outer))(0.3), -3 * jnp.sin(0.3))

    @jax.custom_jvp
    def forward(x):
        return foreign.sine(x)

    forward.defjvp(lambda p, t: (foreign.sine(*p), 5 * foreign.cosine(*p) * t[0]))
    close(jax.grad(forward)(0.3), 5 * jnp.cos(0.3))


def test_a_captured_tracer_beside_a_differentiated_one():
    """grad inside vmap inside grad: tracers of three levels meet in one call."""

    def nested(function):
        def outer(c):
            def middle(x):
                return jax.grad(lambda y: function(x * c, y) * c)(0.5 * x)

            return jnp.sum(jax.vmap(middle)(jnp.arange(1.0, 4.0)))

        return jax.jit(jax.grad(outer))(0.7)

    close(nested(foreign.hypot), nested(jnp.hypot))


def test_perturbations_are_not_confused():
    """d/dx x * (d/dy x sin(y)) at y = x, with the same name for both (Siskind and Pearlmutter)."""

    def f(x):
        return x * jax.jvp(lambda y: x * foreign.sine(y), (x,), (1.0,))[1]

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

    hessian = jax.jit(jax.hessian(nonlinear(direct(foreign.matvec)), (0, 1)))(a, b)
    close(hessian, jax.jit(jax.hessian(nonlinear(jnp.linalg.solve), (0, 1)))(a, b), 1e-8)
    gradient = jax.jit(jax.grad(nonlinear(iterative(foreign.matvec)), (0, 1)))(a, b)
    close(gradient, jax.jit(jax.grad(nonlinear(jnp.linalg.solve), (0, 1)))(a, b), 1e-8)


def test_vectorized_by_jax():
    rng = np.random.default_rng(24)
    args = normal(rng, (4, 1, 2, 3)), normal(rng, (3, 3))

    def gradient(function):
        vectorized = jnp.vectorize(function, signature="(m,n),(n)->(m)")
        return jax.jit(jax.grad(nonlinear(vectorized), (0, 1)))(*args)

    close(gradient(foreign.matvec), gradient(jnp.matmul))


def made_on_the_way(x):
    f = jaxbind.bind(lambda x: x**2, "(n)->(n)")
    f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    f.def_vjp(lambda p, ct: 2 * p[0] * ct)
    return f(x)


@pytest.mark.slow
def test_a_binding_made_inside_the_traced_function():
    """It is gone when the trace ends; what was traced keeps what it needs."""
    x = jnp.asarray([0.5, -1.0, 2.0])
    for wrap in ("jit", "scan", "cond", "checkpoint", "custom_jvp", "map-of-batches"):
        f, twin = (WRAPPERS[wrap](g) for g in (made_on_the_way, lambda x: x**2))
        gc.collect()
        got = jax.jit(jax.value_and_grad(nonlinear(f)))(x)
        gc.collect()
        close(got, jax.jit(jax.value_and_grad(nonlinear(twin)))(x))


def test_bindings_of_one_name_in_one_program():
    """Six functions that nothing but their closure tells apart, with their rules."""

    def scaled_square(k):
        f = jaxbind.bind(lambda x: k * x**2, "(n)->(n)")
        f.def_jvp(lambda p, t: 2 * k * p[0] * t[0])
        f.def_vjp(lambda p, ct: 2 * k * p[0] * ct)
        return f

    functions = [scaled_square(k) for k in range(6)]
    x = jnp.asarray([0.5, -1.0])
    want = jnp.stack([2 * k * x for k in range(6)])

    def each(x):
        return jnp.stack([jnp.sum(f(x)) for f in functions])

    def chosen(x):
        branches = [lambda x, f=f: jnp.sum(f(x)) for f in functions]
        return jax.lax.map(lambda i: jax.lax.switch(i, branches, x), jnp.arange(6))

    for mode in (jax.jacfwd, jax.jacrev):
        close(jax.jit(mode(each))(x), want)
        close(jax.jit(mode(chosen))(x), want)


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


# Maps and derivatives -----------------------------------------------------------------------------


def inexact(tree):
    """The leaves that have derivatives; vmap refuses some of float0."""
    return [x for x in jax.tree.leaves(tree) if is_inexact(x)]


def vmap_of_grad(function, case, axes):
    def gradient(*args):
        return inexact(jax.grad(nonlinear(function), case.argnums, allow_int=True)(*args))

    return lambda *args: jax.vmap(gradient, in_axes=axes)(*args)


def grad_of_vmap(function, case, axes):
    mapped = nonlinear(jax.vmap(function, in_axes=axes))
    return lambda *args: inexact(jax.grad(mapped, case.argnums, allow_int=True)(*args))


def vmap_of_jvp_of_vjp(function, case, axes):
    """The pullback, differentiated along everything, for each element of the map."""

    def one(*args):
        chosen, around = split(args, case.argnums)

        def pull(*chosen):
            value, back = jax.vjp(around(function), *chosen)
            return inexact(back(tangents_of(value)))

        if case.order < 2:
            return pull(*chosen)
        return jax.jvp(pull, chosen, tangents_of(chosen))

    return jax.vmap(one, in_axes=axes)


def nested_vmaps(function, case, axes):
    """The second map is over a factor alone: every operand of it is broadcast in one of them."""

    def gradient(*args):
        return inexact(jax.grad(nonlinear(function), case.argnums, allow_int=True)(*args))

    def inner(*args):
        return jax.vmap(lambda c: gradient(*scaled(args, c)), out_axes=-1)(jnp.arange(1.0, 3.0))

    return jax.vmap(inner, in_axes=axes)


MAPS = {f.__name__: f for f in (vmap_of_grad, grad_of_vmap, vmap_of_jvp_of_vjp, nested_vmaps)}
MAPPED = [
    *named("looped", "decay", "matvec", "triple", "gather", "combine", "blend", "surface", "pick"),
    *named("mix", "cumulate", "swirl", "solve", "columns", "from-jvp", "fourier", "analytic"),
    *named("phase"),
]


@pytest.mark.parametrize("composition", MAPS)
@settings(max_examples=10)
@given(data=st.data())
def test_maps_with_any_axes(composition, data):
    """Each leaf of each operand is mapped along some axis or not at all; sizes from 0."""
    case = data.draw(st.sampled_from(MAPPED))
    size = data.draw(st.sampled_from([0, 1, 2, 3]))
    single, tree = jax.tree.flatten(case.of(12))
    batch = jax.tree.leaves(case.of(13, batch=size))
    axes = [data.draw(st.none() | st.integers(-x.ndim - 1, x.ndim)) for x in single]
    if all(axis is None for axis in axes):
        axes[data.draw(st.integers(0, len(axes) - 1))] = 0
    args = [
        one if axis is None else jnp.moveaxis(many, 0, axis)
        for one, many, axis in zip(single, batch, axes, strict=True)
    ]

    def run(function):
        mapped = MAPS[composition](function, case, tree.unflatten(axes))
        return jax.jit(mapped)(*tree.unflatten(args))

    close(run(case.bound), run(case.twin), 1e-8)


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


@pytest.mark.slow
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
