"""Transposes of linear functions: against inner products, JAX's of the twin, and themselves."""

import itertools

import foreign
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import close, inner, is_inexact, nonlinear, normal, split, tangents_of
from foreign import Pair
from hypothesis import given, settings
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from reference import Case, named

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

LINEAR = named(
    "cumulate",
    "cumulate-reverse",
    "parts",
    "gather",
    "combine",
    "fourier",
    "real-fourier",
    "real-fourier-even",
    "inverse-real-fourier",
    "conjugate",
)
MULTILINEAR = named("matvec", "triple")
cases = pytest.mark.parametrize("case", LINEAR, ids=str)
multilinear_cases = pytest.mark.parametrize("case", MULTILINEAR, ids=str)


def transposed(case: Case, function, args):
    chosen, around = split(args, case.argnums)
    return jax.linear_transpose(around(function), *chosen), around


@cases
def test_linear_transpose(case: Case):
    args = case.of()
    cotangents = tangents_of(case.twin(*args))
    got = transposed(case, case.bound, args)[0](cotangents)
    close(got, transposed(case, case.twin, args)[0](cotangents))


@cases
def test_inner_product(case: Case):
    """``<ct, f(x)> = <fᵀ(ct), x>``: nothing but NumPy knows what f is."""
    args = case.of(1)
    back, _ = transposed(case, case.bound, args)
    value = case.bound(*args)
    cotangents = tangents_of(value)
    left, right = inner(cotangents, value), inner(back(cotangents), args[:1])
    np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-12)


@cases
def test_transposed_twice(case: Case):
    args = case.of(2)
    back, around = transposed(case, case.bound, args)
    value = around(case.bound)(args[0])
    (forth,) = [jax.linear_transpose(back, value)]
    close(forth((args[0],)), (value,))


@cases
def test_transpose_under_jit_vmap_and_differentiation(case: Case):
    """The transpose is linear, too: its pushforward is itself, its pullback the function."""
    args = case.of(3)
    many = jax.tree.map(
        lambda *xs: jnp.stack(xs), *(tangents_of(case.twin(*args), seed) for seed in range(3))
    )

    def every(function):
        back, _ = transposed(case, function, args)
        one = jax.tree.map(lambda x: x[0], many)
        _, again = jax.vjp(back, one)
        return (
            jax.vmap(back)(many),
            jax.jvp(back, (one,), (one,)),
            again(tangents_of(back(one), 4)),
        )

    close(jax.jit(every, static_argnums=0)(case.bound), jax.jit(every, static_argnums=0)(case.twin))


@pytest.mark.parametrize(
    "case", [c for c in (*LINEAR, *MULTILINEAR) if hasattr(c.bound, "transpose")], ids=str
)
def test_the_transpose_called_directly(case: Case):
    """Where a signature tells the shapes; elsewhere `linear_transpose` is what is to be used."""
    args = case.of(4)
    cotangents = tangents_of(case.twin(*args))
    for i in case.argnums:
        chosen, around = split(args, (i,))
        want = jax.linear_transpose(around(case.twin), *chosen)(cotangents)[0]
        rule = case.bound.transpose
        rule = rule[list(rule)[i]] if isinstance(rule, dict) else rule
        others = [a for k, a in enumerate(args) if k != i]
        try:
            got = rule(*others, cotangents)
        except TypeError as error:
            assert "jax.linear_transpose" in str(error)
            assert case.name in ("combine", "gather", "cumulate")
        else:
            close(got, want)


def test_the_transpose_called_directly_over_loop_dimensions():
    a, ct = jnp.ones((5, 1, 2, 3)), jnp.arange(8.0).reshape(4, 2)
    got = foreign.matvec.transpose["x"](a, ct)
    close(got, jnp.broadcast_to(ct.sum(-1)[None, :, None], (5, 4, 3)))


def test_the_transpose_called_directly_is_checked():
    matvec = jaxbind.bind(lambda a, x: a @ x, "(m,n),(n)->(m)", multilinear=("a", "x"), name="f")
    matvec.def_transpose("x")(lambda a, ct: a.T @ ct)
    transpose = matvec.transpose["x"]
    a = np.arange(6.0).reshape(2, 3)
    close(transpose(a, np.ones(2)), jnp.asarray(a.sum(0)))
    with pytest.raises(
        ValueError, match=r"size 3 of core dimension m in argument 1 \(cotangents\)"
    ):
        transpose(a, np.ones(3))
    with pytest.raises(
        ValueError, match=r"f.transpose\['x'\]: argument 1 \(cotangents\) has 0 dim"
    ):
        transpose(a, 1.0)
    with pytest.raises(ValueError, match="loop dimensions do not broadcast"):
        transpose(np.ones((2, 2, 3)), np.ones((3, 2)))
    with pytest.raises(TypeError, match=r"got 1 arguments; it takes 2"):
        transpose(np.ones(2))
    with pytest.raises(TypeError, match="cotangents must have the structure of the result"):
        transpose(a, (np.ones(2), np.ones(2)))


def test_the_transpose_beside_integer_results_called_directly():
    f = jaxbind.bind(
        lambda x: (2 * x, len(x)), "(n)->(n),()", linear=True, dtype=(float, int), name="f"
    )
    f.def_transpose(lambda cts: 2 * cts[0])
    ct = jnp.arange(3.0)
    close(f.transpose((ct, None)), 2 * ct)
    close(f.transpose((jnp.stack([ct, ct]), None)), 2 * jnp.stack([ct, ct]))


# Several arguments --------------------------------------------------------------------------------


@multilinear_cases
def test_each_argument_alone(case: Case):
    args = case.of(5)
    ct = tangents_of(case.twin(*args))

    def every(function):
        found = []
        for i in case.argnums:
            chosen, around = split(args, (i,))
            found.append(jax.linear_transpose(around(function), *chosen)(ct))
        return found

    close(jax.jit(every, static_argnums=0)(case.bound), jax.jit(every, static_argnums=0)(case.twin))


@multilinear_cases
def test_a_transpose_transposed_in_another_argument(case: Case):
    """``<u, f_iᵀ(y, ct)> = <f(u, y), ct>`` is linear in y too; all pairs (i, y)."""
    args = case.of(6)
    ct = tangents_of(case.twin(*args))

    def every(function):
        found = []
        for i, j in itertools.permutations(case.argnums, 2):

            def pull(y, i=i, j=j):
                full = list(args)
                full[j] = y
                chosen, around = split(tuple(full), (i,))
                return jax.linear_transpose(around(function), *chosen)(ct)[0]

            u = tangents_of(args[i], i)
            found.append(jax.linear_transpose(pull, args[j])(u))
            found.append(jax.jvp(pull, (args[j],), (tangents_of(args[j], j),))[1])
        return found

    close(jax.jit(every, static_argnums=0)(case.bound), jax.jit(every, static_argnums=0)(case.twin))


def test_the_same_value_in_two_arguments():
    x = jnp.asarray([0.5, -1.0, 2.0])
    m = normal(np.random.default_rng(7), (2, 3))

    def loss(function):
        return lambda x: jnp.sum(function(m, x, x) ** 2)

    got = jax.jit(jax.grad(loss(foreign.triple)))(x)
    close(got, jax.grad(loss(lambda m, a, b: m @ (a * b)))(x))


@pytest.mark.parametrize("leaf", ["u", "v"])
def test_one_leaf_of_a_jointly_linear_argument(leaf):
    """The rule gives cotangents for all; the other leaf is a zero that JAX made concrete."""
    pair = Pair(jnp.ones(3), (jnp.arange(2.0),))
    zeros = jax.tree.map(jnp.zeros_like, pair)

    def along(function):
        def one(x):
            return function(zeros._replace(**{leaf: x}), 2)

        value = one(getattr(pair, leaf))
        return jax.linear_transpose(one, getattr(pair, leaf))(tangents_of(value))

    close(along(foreign.combine), along(foreign.combine_twin))


@pytest.mark.parametrize("kept", [0, 1])
def test_one_of_two_jointly_linear_arguments(kept):
    args = jnp.ones(3), jnp.arange(3.0), jnp.asarray(0.3)
    zeros = [jnp.zeros(3), jnp.zeros(3)]

    def along(function):
        def one(x):
            linear = list(zeros)
            linear[kept] = x
            return function(*linear, args[2], power=2)

        return jax.linear_transpose(one, args[kept])(jnp.arange(3.0))

    close(along(foreign.blend), along(foreign.blend_twin))


# Zeros that arrive as arrays ----------------------------------------------------------------------


@pytest.mark.parametrize("case", named("parts", "combine", "blend", "matvec"), ids=str)
def test_inside_scan(case: Case):
    """Carried tangents, some of them zeros at first: JAX makes them arrays."""
    args = case.of(8)
    first, rest = args[0], args[1:]

    def loss(function):
        def body(carry, t):
            moved = jax.tree.map(lambda c: t * c, carry)
            leaves = [x for x in jax.tree.leaves(function(moved, *rest)) if is_inexact(x)]
            return moved, sum(jnp.sum(x) for x in leaves)

        def total(first):
            return jnp.sum(jax.lax.scan(body, first, jnp.arange(1.0, 4.0))[1] ** 2)

        return jax.jit(jax.grad(total))

    close(loss(case.bound)(first), loss(case.twin)(first))


def test_a_scan_that_starts_from_a_constant():
    """The first carry is a constant, and its tangent a zero, in one of two linear arguments."""

    def loss(function):
        def total(w, c):
            def body(x, _):
                return function(x, w, c, power=2), None

            return jnp.sum(jax.lax.scan(body, jnp.zeros(3), None, length=3)[0] ** 2)

        return jax.jit(jax.grad(total, (0, 1)))

    args = jnp.arange(3.0), jnp.asarray(0.3)
    close(loss(foreign.blend)(*args), loss(foreign.blend_twin)(*args))


@pytest.mark.parametrize("case", [*LINEAR, *MULTILINEAR], ids=str)
def test_linearized(case: Case):
    args, around = split(case.of(9), case.argnums)

    def through(function):
        value, push = jax.linearize(around(function), *args)
        tangents = tangents_of(args)
        return push(*tangents), jax.linear_transpose(push, *args)(tangents_of(value))

    close(through(case.bound), through(case.twin))


# Loop dimensions ----------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    shapes=mutually_broadcastable_shapes(
        signature="(m,n),(n)->(m)", max_dims=2, max_side=2, min_side=0
    ),
    seed=st.integers(0, 2**32 - 1),
    which=st.integers(0, 1),
)
def test_what_was_broadcast_is_summed(shapes, seed, which):
    rng = np.random.default_rng(seed)
    args = tuple(normal(rng, s) for s in shapes.input_shapes)
    ct = normal(rng, shapes.result_shape)

    def transpose(function):
        chosen, around = split(args, (which,))
        return jax.linear_transpose(around(function), *chosen)(ct)

    close(
        transpose(foreign.matvec),
        transpose(lambda a, x: jnp.einsum("...mn,...n->...m", a, x)),
    )


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (-1, 1)], ids=str)
@multilinear_cases
def test_transposed_in_a_map(case: Case, axes):
    """vmap of a transpose: the operand or the cotangent is mapped, or both, in any axis."""
    args = case.of(10)
    ct = tangents_of(case.twin(*args))
    operand, cotangent = axes

    def stacked(x, axis):
        return x if axis is None else jnp.stack([x, 2 * x, -x], axis)

    def every(function):
        found = []
        for i in case.argnums:
            j = next(k for k in case.argnums if k != i)

            def back(other, ct, i=i, j=j):
                full = list(args)
                full[j] = other
                chosen, around = split(tuple(full), (i,))
                return jax.linear_transpose(around(function), *chosen)(ct)

            mapped = jax.vmap(back, in_axes=axes)
            found.append(mapped(stacked(args[j], operand), stacked(ct, cotangent)))
        return found

    close(jax.jit(every, static_argnums=0)(case.bound), jax.jit(every, static_argnums=0)(case.twin))


# Signatures ---------------------------------------------------------------------------------------


def matmul_binding():
    """NumPy's own signature; dimensions with a question mark may be missing."""
    f = jaxbind.bind(lambda a, b: a @ b, "(m?,n),(n,p?)->(m?,p?)", multilinear=("a", "b"))

    @f.def_transpose("a")
    def _(b, ct):
        rows = ct.reshape(-1, b.shape[1] if b.ndim == 2 else 1)
        product = rows @ b.reshape(len(b), -1).T
        return product if ct.ndim == b.ndim else product[0]

    @f.def_transpose("b")
    def _(a, ct):
        columns = ct.reshape(a.shape[0] if a.ndim == 2 else 1, -1)
        product = a.reshape(-1, a.shape[-1]).T @ columns
        return product if ct.ndim == a.ndim else product[:, 0]

    return f


@pytest.mark.parametrize("shapes", [((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,))])
def test_optional_dimensions(shapes):
    """Derivatives of first and second order, alone and mapped."""
    rng = np.random.default_rng(11)
    args = tuple(normal(rng, s) for s in shapes)
    stacked = normal(rng, (2, *shapes[0])), args[1]

    def every(function):
        loss = nonlinear(function)
        mapped = nonlinear(jax.vmap(function, (0, None)))
        return (
            jax.vjp(function, *args)[1](tangents_of(args[0] @ args[1])),
            jax.hessian(loss, (0, 1))(*args),
            jax.grad(mapped, (0, 1))(*stacked),
        )

    got, want = (jax.jit(every, static_argnums=0)(f) for f in (matmul_binding(), jnp.matmul))
    close(got, want, 1e-8)


def test_fixed_dimensions():
    f = jaxbind.bind(lambda a, b: np.cross(a, b), "(3),(3)->(3)", multilinear=("a", "b"))
    f.def_transpose("a")(lambda b, ct: np.cross(b, ct))
    f.def_transpose("b")(lambda a, ct: np.cross(ct, a))
    rng = np.random.default_rng(12)
    a, b = normal(rng, (4, 1, 3)), normal(rng, (2, 3))

    def every(function):
        return (
            jax.jit(jax.grad(nonlinear(function), (0, 1)))(a, b),
            jax.jit(jax.hessian(nonlinear(function), (0, 1)))(a[0, 0], b[0]),
        )

    close(every(f), every(jnp.cross), 1e-8)


# Derivatives are linear in their tangents ---------------------------------------------------------


def test_transposes_of_derivatives():
    """The transpose of a pushforward is the pullback, and the other way round."""
    x, c, ct = jnp.asarray([0.5, -1.0, 2.0]), jnp.asarray(0.3), jnp.arange(3.0)
    f = foreign.surface
    push, pull = (lambda *t: f.jvp((x, c), t)), (lambda ct: f.vjp((x, c), ct))
    close(jax.linear_transpose(push, x, c)(ct), tuple(pull(ct)))
    close(jax.linear_transpose(pull, ct)((x, c)), (push(x, c),))

    def twin(*t):
        return jax.jvp(foreign.blend_twin, (x, x, c), t)[1]

    partly = jax.linear_transpose(lambda *t: foreign.blend.jvp((x, x, c), t), x, x, c)
    close(partly(ct), jax.linear_transpose(twin, x, x, c)(ct))


def test_traced_transposes():
    f = jaxbind.bind(lambda a, x: a @ x, "(m,n),(n)->(m)", multilinear=("a", "x"))
    f.def_transpose("a", traced=True)(lambda x, ct: jnp.outer(ct, x))
    f.def_transpose("x", traced=True)(lambda a, ct: a.T @ ct)
    rng = np.random.default_rng(13)
    args = normal(rng, (5, 2, 3)), normal(rng, (3,))

    def hessian(function):
        return jax.jit(jax.hessian(nonlinear(function), (0, 1)))(*args)

    close(hessian(f), hessian(lambda a, x: a @ x), 1e-8)
