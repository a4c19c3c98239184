"""Pullbacks: against JAX's of the twin, and as transposes of the pushforwards."""

import dataclasses
import itertools
from typing import Any

import foreign
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from amount import every
from comparing import close, inner, is_inexact, normal, split, tangents_of
from hypothesis import given, settings
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from reference import ALL, REAL, Case, named

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

seeds = st.integers(0, 2**32 - 1)
cases = pytest.mark.parametrize("case", every(3, ALL), ids=str)


def pulled(function, argnums):
    """Value and pullback of random cotangents to the differentiable arguments."""

    def pull(*args):
        chosen, around = split(args, argnums)
        value, back = jax.vjp(around(function), *chosen)
        return value, back(tangents_of(value))

    return pull


@cases
def test_pullback(case: Case):
    args = case.of()
    got = jax.jit(pulled(case.bound, case.argnums))(*args)
    close(got, jax.jit(pulled(case.twin, case.argnums))(*args), case.rtol)


@pytest.mark.parametrize(
    "case",
    named("product", "decay", "polar", "power", "matvec", "combine", "blend", "pick", "mix")
    + named("swirl", "solve", "from-jvp", "from-vjp", "real-fourier", "phase"),
    ids=str,
)
def test_eager_equals_compiled(case: Case):
    args = case.of(1)
    pull = pulled(case.bound, case.argnums)
    close(pull(*args), jax.jit(pull)(*args), 1e-12)


@cases
def test_pullback_is_the_transpose_of_the_pushforward(case: Case):
    args, around = split(case.of(2), case.argnums)
    tangents = tangents_of(args, 3)

    @jax.jit
    def both(*chosen):
        value, tangent = jax.jvp(around(case.bound), chosen, tangents)
        cotangents = tangents_of(value, 4)
        return tangent, jax.vjp(around(case.bound), *chosen)[1](cotangents)

    tangent, pulled_back = both(*args)
    cotangents = tangents_of(case.bound(*case.of(2)), 4)
    np.testing.assert_allclose(
        inner(cotangents, tangent), inner(pulled_back, tangents), rtol=max(case.rtol, 1e-9) * 10
    )


@pytest.mark.parametrize("case", [c for c in ALL if len(c.argnums) > 1], ids=str)
def test_every_subset_of_arguments(case: Case):
    args = case.of(5)
    subsets = [
        subset
        for size in range(1, len(case.argnums))
        for subset in itertools.combinations(case.argnums, size)
    ]

    def every(function):
        return jax.jit(lambda *a: [pulled(function, s)(*a)[1] for s in subsets])(*args)

    close(every(case.bound), every(case.twin), case.rtol)


@pytest.mark.parametrize(
    "case", named("polar", "parts", "combine", "pick", "mix", "quadratic"), ids=str
)
def test_every_subset_of_results(case: Case):
    """A loss of some results: the cotangents of the others are symbolic zeros."""
    args, around = split(case.of(6), case.argnums)
    count = sum(map(is_inexact, jax.tree.leaves(case.twin(*case.of(6)))))

    def every(function):
        def losses(*chosen):
            found = [x for x in jax.tree.leaves(around(function)(*chosen)) if is_inexact(x)]
            return [
                sum(jnp.sum(jnp.sin(x)) for x in some)
                for size in range(1, count + 1)
                for some in itertools.combinations(found, size)
            ]

        number = 2**count - 1
        return jax.jit(
            lambda *chosen: [
                jax.grad(lambda *c, k=k: losses(*c)[k], range(len(chosen)), allow_int=True)(*chosen)
                for k in range(number)
            ]
        )(*args)

    close(every(case.bound), every(case.twin))


@pytest.mark.parametrize("case", named("mix", "combine"), ids=str)
def test_single_leaves_of_pytrees(case: Case):
    """Only one leaf of an argument is differentiated; the others are constants."""
    args = case.of(7)
    leaves, tree = jax.tree.flatten(args)
    wanted = [i for i, x in enumerate(leaves) if is_inexact(x)]

    def every(function):
        def at(i):
            def one(x):
                return function(*tree.unflatten([*leaves[:i], x, *leaves[i + 1 :]]))

            return one

        return jax.jit(
            lambda xs: [pulled(at(i), (0,))(x) for i, x in zip(wanted, xs, strict=True)]
        )([leaves[i] for i in wanted])

    close(every(case.bound), every(case.twin))


@pytest.mark.parametrize("zeros", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("case", named("polar", "parts", "pick"), ids=str)
def test_zero_cotangents_as_arrays(case: Case, zeros):
    args, around = split(case.of(8), case.argnums)

    def pull(function):
        value, back = jax.vjp(around(function), *args)
        cotangents = [
            np.zeros_like(c) if i in zeros else c
            for i, c in enumerate(jax.tree.leaves(tangents_of(value)))
        ]
        return back(tuple(cotangents))

    close(pull(case.bound), pull(case.twin))


# Integers -----------------------------------------------------------------------------------------


def test_integer_operands_and_results():
    args = foreign.pick_operands(np.random.default_rng(9))
    value, back = jax.vjp(foreign.pick, *args)
    cotangents = (1.0, np.zeros((), jax.dtypes.float0), jnp.ones(4))
    close(back(cotangents), jax.vjp(foreign.pick_twin, *args)[1](cotangents))
    assert value[1].dtype == int

    def last(function):
        return jax.grad(lambda *a: function(*a)[2].sum(), (0, 2), allow_int=True)(*args)

    close(last(foreign.pick), last(foreign.pick_twin))


def test_an_integer_result_used_further():
    def loss(function):
        def inner(x):
            total, where, scaled = function(x, 0.1, 2)
            return total * x[where] + scaled[where]

        return jax.jit(jax.grad(inner))

    x = jnp.asarray([0.3, 2.0, -1.0])
    close(loss(foreign.pick)(x), loss(foreign.pick_twin)(x))


# Loop dimensions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [c for c in REAL if c.name in ("product", "looped", "shifted")], ids=str
)
@settings(max_examples=8)
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3), seed=seeds)
def test_what_was_broadcast_is_summed(case: Case, shapes, seed):
    rng = np.random.default_rng(seed)
    args = tuple(normal(rng, s) for s in shapes.input_shapes)
    close(pulled(case.bound, (0, 1))(*args), pulled(case.twin, (0, 1))(*args))


@settings(max_examples=12)
@given(
    shapes=mutually_broadcastable_shapes(
        signature="(m,n),(n)->(m)", max_dims=2, max_side=2, min_side=0
    ),
    seed=seeds,
)
def test_what_was_broadcast_is_summed_for_a_multilinear_function(shapes, seed):
    rng = np.random.default_rng(seed)
    args = tuple(normal(rng, s) for s in shapes.input_shapes)

    def twin(a, x):
        return jnp.einsum("...mn,...n->...m", a, x)

    close(pulled(foreign.matvec, (0, 1))(*args), pulled(twin, (0, 1))(*args))


MAPPED = named(
    "product", "shifted", "decay", "matvec", "triple", "blend", "surface", "pick", "solve", "swirl"
)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("case", MAPPED, ids=str)
def test_pullback_of_a_map(case: Case, size):
    """For every choice of mapped arguments the others get the sum over the map."""
    single, batch = case.of(10), case.of(11, batch=size)
    choices = [
        axes
        for axes in itertools.product([None, 0], repeat=len(single))
        if any(a == 0 for a in axes)
    ]

    def every(function):
        found = []
        for axes in choices:
            args = tuple(s if a is None else b for s, b, a in zip(single, batch, axes))
            found.append(pulled(jax.vmap(function, in_axes=axes), case.argnums)(*args))
        return found

    close(jax.jit(every, static_argnums=0)(case.bound), jax.jit(every, static_argnums=0)(case.twin))


@pytest.mark.parametrize("case", named("product", "matvec", "blend", "surface"), ids=str)
def test_pullback_of_an_empty_map(case: Case):
    single, batch = case.of(12), case.of(13, batch=0)
    axes = (0,) + (None,) * (len(single) - 1)
    args = (batch[0], *single[1:])

    def pull(function):
        return jax.jit(pulled(jax.vmap(function, in_axes=axes), case.argnums))(*args)

    close(pull(case.bound), pull(case.twin))


# Derivatives as bindings --------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in ALL if hasattr(c.bound, "vjp") and c.argnums], ids=str)
def test_the_derivative_called_directly(case: Case):
    args = case.of(14)
    value, want = jax.jit(pulled(case.twin, case.argnums))(*args)
    cotangents = jax.tree.map(
        lambda t: None if t.dtype == jax.dtypes.float0 else t, tangents_of(value)
    )
    got = case.bound.vjp(args, cotangents)
    assert len(got) == len(args)
    found = [x for x in jax.tree.leaves(got) if x.dtype != jax.dtypes.float0]
    close(found, [x for x in jax.tree.leaves(want) if x.dtype != jax.dtypes.float0], case.rtol)


def test_the_derivative_of_a_partly_linear_function_called_directly():
    args = jnp.arange(3.0), jnp.ones(3), jnp.asarray(0.4)
    ct = jnp.asarray([1.0, -2.0, 0.5])
    want = jax.vjp(foreign.blend_twin, *args)[1](ct)
    close(tuple(foreign.blend.vjp(args, ct)), want)


@pytest.mark.parametrize("ruled", [True, False])
def test_the_derivative_beside_integer_results_called_directly(ruled):
    """Linear in part, with a rule for the rest or without; its integer result has no cotangent."""
    f = jaxbind.bind(
        lambda x, c, k: (x * c * k, 3),
        "(),(),()->(),()",
        linear="x",
        nondiff=() if ruled else "c",
        dtype=(float, int),
        name="f",
    )
    f.def_transpose(lambda c, k, cts: cts[0] * c * k)
    if ruled:
        f.def_vjp(lambda primals, cts: (None, primals[0] * primals[2] * cts[0], None))
    args = 2.0, 3.0, 4
    close(f.vjp(args, (10.0, None)), (120.0, 80.0 if ruled else None, None))
    close(f.vjp(list(args), (10, None)), (120.0, 80.0 if ruled else None, None))
    got = jax.jit(lambda x: f.vjp((x, 3.0, 4), (x, None)))(2.0)
    close(got, (24.0, 16.0 if ruled else None, None))
    for wrong in (1.0, (1.0,), (1.0, None, 1.0), ((1.0, 1.0), None)):
        text = r"f\.vjp: cotangents must have the structure of the result, \(\*, \*\); got"
        with pytest.raises(TypeError, match=text):
            f.vjp(args, wrong)
    with pytest.raises(TypeError, match=r"f\.vjp: a cotangent is complex128, where float64"):
        f.vjp(args, (1j, None))
    with pytest.raises(TypeError, match=r"f\.vjp: primals must be a tuple"):
        f.vjp(2.0, (1.0, None))


@pytest.mark.parametrize("linear", [(), "y"])
def test_cotangents_of_integers_may_be_those_of_jax(linear):
    f = jaxbind.bind(
        lambda x, y: (x * y, 3), "(),()->(),()", linear=linear, dtype=(float, int), name="f"
    )
    f.def_vjp(lambda primals, cts: (primals[1] * cts[0], None if linear else primals[0] * cts[0]))
    if linear:
        f.def_transpose(lambda x, cts: x * cts[0])
    nothing = np.zeros((), jax.dtypes.float0)
    close(f.vjp((2.0, 3.0), (1.0, nothing)), (3.0, 2.0))


def test_cotangents_of_another_structure():
    f = jaxbind.bind(lambda x: x, "()->()", name="f")
    f.def_vjp(lambda primals, ct: ct)
    with pytest.raises(TypeError, match=r"f\.vjp: cotangents .* result, \*; got \(\*, \*\)"):
        f.vjp((1.0,), (1.0, 2.0))


# Numbers, dtypes ----------------------------------------------------------------------------------


def test_python_numbers():
    close(
        jax.grad(foreign.product, (0, 1))(2.0, 3.0),
        jax.grad(lambda a, b: a * b**2, (0, 1))(2.0, 3.0),
    )
    got = jax.grad(foreign.product, (0, 1))(jnp.float32(2.0), 3.0)
    close(got, jax.grad(lambda a, b: a * b**2, (0, 1))(jnp.float32(2.0), 3.0))


@pytest.mark.parametrize(
    "case", named("product", "matvec", "cumulate", "blend", "solve", "wide", "fourier"), ids=str
)
def test_32_bits(case: Case):
    with jax.enable_x64(False):
        args = case.of(15)
        got = jax.jit(pulled(case.bound, case.argnums))(*args)
        close(got, jax.jit(pulled(case.twin, case.argnums))(*args), 3e-5)


def test_operands_of_two_precisions():
    """A float32 operand beside a float64 one gets a float32 cotangent, as from JAX."""

    def twin(a, x):
        return a @ x

    args = jnp.ones((2, 3), jnp.float32), jnp.arange(3.0)
    close(pulled(foreign.matvec, (0, 1))(*args), pulled(twin, (0, 1))(*args))


# Structures ---------------------------------------------------------------------------------------

X = np.asarray([0.5, -1.0, 2.0])


def test_results_written_in_place():
    """`out` holds None for what is not wanted; several results, of different shapes."""

    @jaxbind.bind(out=lambda x, y: (x, y))
    def f(x, y, *, out):
        out[0][...] = x * y[: len(x)]
        out[1][...] = y**2

    @f.def_vjp
    def _(primals, cts, *, out, wrt):
        x, y = primals
        assert [o is not None for o in out] == list(wrt)
        if wrt[0]:
            out[0][...] = cts[0] * y[: len(x)]
        if wrt[1]:
            out[1][...] = 2 * y * cts[1]
            out[1][: len(x)] += x * cts[0]

    def twin(x, y):
        return x * y[: len(x)], y**2

    case = Case("", f, twin, lambda rng: None, (0, 1))
    args = X[:2], X
    for argnums in ((0,), (1,), (0, 1)):
        close(pulled(case.bound, argnums)(*args), pulled(case.twin, argnums)(*args))
    mapped = X[:2], np.stack([X, 2 * X])
    got, want = (pulled(jax.vmap(g, (None, 0)), (0, 1))(*mapped) for g in (f, twin))
    close(got, want)


def test_an_argument_that_may_be_none():
    f = jaxbind.bind(lambda x, b: x**2 if b is None else x**2 + b, out=lambda x, b: x)
    f.def_vjp(lambda p, ct: (2 * p[0] * ct, None if p[1] is None else ct))
    close(jax.grad(lambda x: f(x, None).sum())(X), jnp.asarray(2 * X))
    close(jax.grad(lambda x, b: f(x, b).sum(), (0, 1))(X, X), (jnp.asarray(2 * X), jnp.ones(3)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Tagged:
    u: Any
    v: Any
    tag: str = dataclasses.field(metadata={"static": True}, default="")


def test_dataclasses_with_static_fields():
    def product(p):
        return Tagged(p.u * p.v, p.u, p.tag + "!")

    f = jaxbind.bind(product, out=lambda p: Tagged(p.u, p.u, p.tag + "!"))
    f.def_vjp(lambda p, ct: Tagged(ct.u * p[0].v + ct.v, ct.u * p[0].u, p[0].tag))
    args = (Tagged(X, X + 1, "a"),)
    close(pulled(f, (0,))(*args), pulled(product, (0,))(*args))


# Derivatives made from others ---------------------------------------------------------------------


@pytest.mark.parametrize("traced", [False, True])
def test_from_jvp_of_any_rule(traced):
    """The rule may be traced and leave out parameters; what has no derivative stays None."""
    f = jaxbind.bind(
        lambda x, c, k, *, power=2, label="": c * k * x**power, "(n),(n),()->(n)", nondiff="c"
    )
    f.def_vjp("from-jvp")

    @f.def_jvp(traced=traced)
    def _(primals, tangents, *, power):
        x, c, k = primals
        assert tangents[1:] == (None, None)
        return c * k * power * x ** (power - 1) * tangents[0]

    def gradient(x):
        return jax.grad(lambda x: f(x, 2 * np.ones(3), 5, power=3, label="a").sum())(x)

    close(gradient(X), jnp.asarray(30 * X**2))
    close(jax.vmap(gradient)(np.stack([X, -2 * X])), jnp.stack([30 * X**2, 120 * X**2]))


def test_from_jvp_where_nothing_is_there():
    f = jaxbind.bind(lambda x: x**2, "(n)->(n)")
    f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    f.def_vjp("from-jvp")
    for shape in ((0,), (2, 0), (0, 2), (1, 2)):
        x = jnp.ones(shape)
        close(jax.grad(lambda x: f(x).sum())(x), 2 * x)
