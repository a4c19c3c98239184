"""Memory order: what the function sees, and that nothing is copied where it need not be."""

import re

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")


def same(v):
    return v


def is_ordered(array, order, loops=0):
    """Whether the core of every iteration lies in that order, and iterations one after another."""
    core = array[(slice(0, 1),) * loops].reshape(array.shape[loops:]) if array.size else array
    return core.flags.f_contiguous if order == "F" else array.flags.c_contiguous


# What the function sees ---------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=3),
    st.sampled_from("CF"),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["eager", "jit", "vmap", "vmap out", "vmap vmap"]),
    st.sampled_from(["float64", "complex64", "int8"]),
)
def test_views_and_values(core, order, vectorized, in_place, route, dtype):
    """Each rank, on every way: the order is right, and so is each element."""
    loops = {"eager": 0, "jit": 0, "vmap": 1, "vmap out": 1, "vmap vmap": 2}[route]
    seen = []

    def check(*arrays):
        expected = loops if vectorized else 0
        assert all(a.ndim == len(core) + expected for a in arrays)
        seen.extend(is_ordered(a, order, expected) for a in arrays)

    def returned(v):
        check(v)
        return v + v

    def written(v, *, out):
        check(v, out)
        np.add(v, v, out=out)

    f = jaxbind.bind(
        written if in_place else returned, out=same, order=order, vectorized=vectorized
    )
    batch = (2, 3)[:loops]
    v = (np.random.default_rng(0).random((*batch, *core)) * 9).astype(dtype)
    if route == "jit":
        got = jax.jit(f)(v)
    elif route == "vmap":
        got = jax.vmap(f)(v)
    elif route == "vmap out":
        got = jax.vmap(f, -1, len(core))(np.moveaxis(v, 0, -1))
        got = jnp.moveaxis(got, len(core), 0)
    elif route == "vmap vmap":
        got = jax.jit(jax.vmap(jax.vmap(f), 0))(v)
    else:
        got = f(v)
    np.testing.assert_array_equal(got, v + v)
    assert all(seen) and (seen or v.size == 0)


@settings(max_examples=25)
@given(st.data())
def test_both_orders_give_the_same(data):
    """Several operands and results of different ranks, with broadcast loop dimensions."""
    signature = "(l,m,n),(n,m),()->(n,l),(m),(m,n,l)"
    inputs = signature.partition("->")[0] + "->()"
    drawn = data.draw(hnp.mutually_broadcastable_shapes(signature=inputs, max_dims=2, max_side=3))
    operands = [
        np.random.default_rng(k).standard_normal(shape)
        for k, shape in enumerate(drawn.input_shapes)
    ]

    def function(a, b, c):
        first = np.einsum("...lmn,...nm->...nl", a, b)
        return first, np.swapaxes(b, -1, -2).sum(-1) * c[..., None], np.moveaxis(a, -3, -1) - 1

    def stacked(a, b, c):
        loop = np.broadcast_shapes(a.shape[:-3], b.shape[:-2], c.shape)
        results = function(a, b, c)
        return tuple(
            np.broadcast_to(r, loop + r.shape[r.ndim - k :])
            for r, k in zip(results, (2, 1, 3), strict=True)
        )

    results = [
        jaxbind.bind(f, signature, order=order, vectorized=vectorized)(*operands)
        for order in "CF"
        for f, vectorized in ((function, False), (stacked, True))
    ]
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), results[0], other)
    want = stacked(*operands)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), results[0], want)


@pytest.mark.parametrize("order", ["C", "F"])
def test_operands_in_any_layout_of_their_own(order):
    """Transposed, sliced, strided and broadcast arrays, of NumPy and of JAX."""
    seen = []
    f = jaxbind.bind(lambda v: seen.append(is_ordered(v, order)) or v * 2, out=same, order=order)
    v = np.arange(60.0).reshape(3, 4, 5)
    for array in (
        v.T,
        np.asfortranarray(v),
        v[::-1, ::2],
        np.broadcast_to(v[0], (2, 4, 5)),
        v[..., 0],
    ):
        np.testing.assert_array_equal(f(array), array * 2)
        np.testing.assert_array_equal(jax.jit(f)(jnp.asarray(v).T), v.T * 2)
        np.testing.assert_array_equal(jax.jit(lambda w: f(w.T + 1))(array), (array.T + 1) * 2)
    assert all(seen)


def test_what_is_returned_may_have_any_order():
    for order in "CF":
        f = jaxbind.bind(lambda v: np.asfortranarray(v) * 2, out=same, order=order)
        g = jaxbind.bind(lambda v: np.ascontiguousarray(v)[::-1], out=same, order=order)
        v = np.arange(12.0).reshape(3, 4)
        np.testing.assert_array_equal(f(v), 2 * v)
        np.testing.assert_array_equal(g(v), v[::-1])


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_fortran_library(order):
    """LAPACK's routine sees `info == 0` and solves in place only for its own order."""
    lapack = pytest.importorskip("scipy.linalg.lapack")
    copies = []

    def solve(a, b):
        copies.append(not a.flags.f_contiguous)
        _, _, x, info = lapack.dgesv(a, b)
        assert info == 0
        return x

    f = jaxbind.bind("(n,n),(n,k)->(n,k)", order=order)(solve)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 3, 3)) + 3 * np.eye(3), rng.standard_normal((4, 3, 2))
    np.testing.assert_allclose(f(a, b), np.linalg.solve(a, b), rtol=1e-10)
    assert copies == [order == "C"] * 4


def test_derivatives_have_the_order_of_their_function():
    seen = []

    def note(*arrays):
        seen.extend(a.flags.f_contiguous for a in arrays)

    f = jaxbind.bind("(m,n)->(m,n)", order="F")(lambda v: note(v) or v**2)
    f.def_jvp(lambda p, t: note(*p, *t) or 2 * p[0] * t[0])
    f.def_vjp(lambda p, ct: note(*p, ct) or 2 * p[0] * ct)
    v = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(jax.jvp(f, (v,), (v,))[1], 2 * v * v)
    np.testing.assert_array_equal(jax.grad(lambda v: f(v).sum())(v), 2 * v)
    w = np.arange(24.0).reshape(4, 2, 3)
    np.testing.assert_array_equal(jax.vmap(jax.grad(lambda v: f(v).sum()))(w), 2 * w)
    assert all(seen) and len(seen) > 10


# Copies -------------------------------------------------------------------------------------------


def moves(function, *operands):
    """The instructions of the compiled program that move data around."""
    text = jax.jit(function).lower(*operands).compile().as_text()
    entry = text[text.index("ENTRY") :]
    return re.findall(r" (copy|transpose|fusion|bitcast|reshape|custom-call)\(", entry)


def chain(f, length):
    def chained(v):
        for _ in range(length):
            v = f(v)
        return v

    return chained


@pytest.mark.parametrize("length", [2, 3, 5])
@pytest.mark.parametrize("shape", [(8, 9), (4, 5, 6)])
def test_no_copy_between_fortran_functions(length, shape):
    v = np.arange(float(np.prod(shape))).reshape(shape)
    f = jaxbind.bind(out=same, order="F")(lambda v, *, out: np.add(v, 1, out=out))
    found = moves(chain(f, length), v)
    assert found.count("custom-call") == length
    assert found[0] in ("copy", "transpose", "fusion") and found[-1] in (
        "copy",
        "transpose",
        "fusion",
    )
    assert len(found) <= length + 2  # on the way in and on the way out
    np.testing.assert_array_equal(jax.jit(chain(f, length))(v), v + length)


def test_no_copy_between_fortran_functions_under_vmap():
    v = np.arange(120.0).reshape(5, 4, 6)
    f = jaxbind.bind("(m,n)->(m,n)", order="F")(lambda v, *, out: np.add(v, 1, out=out))
    found = moves(jax.vmap(chain(f, 3)), v)
    assert found.count("custom-call") == 3 and len(found) <= 5


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rank", [0, 1])
def test_no_copy_at_all_where_the_orders_are_the_same(order, rank):
    f = jaxbind.bind(out=same, order=order)(lambda v: v + 1)
    core, batch = np.ones((4,) * rank), np.ones((5,) + (4,) * rank)
    assert set(moves(chain(f, 3), core)) <= {"custom-call", "bitcast"}
    assert set(moves(jax.vmap(chain(f, 3)), batch)) <= {"custom-call", "bitcast"}


def test_no_copy_in_c_order():
    f = jaxbind.bind(out=same)(lambda v: v + 1)
    assert moves(chain(f, 3), np.ones((4, 5, 6))) == ["custom-call"] * 3
    assert set(moves(jax.vmap(chain(f, 3)), np.ones((4, 5, 6)))) <= {"custom-call", "bitcast"}


def test_mixed_orders_in_one_program():
    c = jaxbind.bind("(m,n)->(m,n)")(lambda v: v * 2 + np.arange(v.shape[1]))
    f = jaxbind.bind("(m,n)->(m,n)", order="F")(lambda v: v - np.arange(v.shape[0])[:, None])

    def both(c, f):
        return lambda v: c(f(f(c(v.T).T))) + f(c(v))

    v = np.random.default_rng(0).standard_normal((2, 3, 3))
    twin = both(
        lambda v: v * 2 + jnp.arange(v.shape[1]), lambda v: v - jnp.arange(v.shape[0])[:, None]
    )
    for transform in (jax.vmap, lambda g: jax.jit(jax.vmap(g)), lambda g: jax.vmap(jax.jit(g), 2)):
        np.testing.assert_allclose(transform(both(c, f))(v), transform(twin)(v), rtol=1e-14)


@pytest.mark.parametrize("shape", [(0, 0), (3, 0, 0), (0, 0, 0), (2, 0, 4)])
def test_results_that_are_empty_in_two_dimensions(shape):
    """XLA's transposition of what is empty divided by zero."""
    f = jaxbind.bind(lambda x: (x.T * 1, x.sum()), "(m,n)->(n,m),()", order="F")
    for call in (f, jax.jit(f)):
        turned, total = call(np.zeros(shape, np.float32))
        assert turned.shape == (*shape[:-2], shape[-1], shape[-2])
        np.testing.assert_array_equal(total, np.zeros(shape[:-2]))
