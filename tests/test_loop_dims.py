"""Loop dimensions: broadcasting and vmap are one rule, and the loop runs inside one foreign call.

The truth is `numpy.vectorize` with the same signature, and for ``vmap`` a loop in Python over it.
"""

import contextlib
import itertools

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from amount import every
from hypothesis import assume, given, settings

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

# For each signature: a function of core operands, and one that takes loop dimensions itself.
# All values are small integers, so that every order of summation gives the same bits.
CASES = {
    "(),()->()": (lambda a, b: a - 2 * b, lambda a, b: a - 2 * b),
    "(n)->()": (np.sum, lambda a: a.sum(-1)),
    "(n),(n)->()": (np.dot, lambda a, b: np.sum(a * b, -1)),
    "(m,n),(n)->(m)": (np.dot, lambda a, b: np.sum(a * b[..., None, :], -1)),
    "(m),(n)->(m,n)": (np.multiply.outer, lambda a, b: a[..., :, None] * b[..., None, :]),
    "(n),()->(n),()": (
        lambda a, b: (a * b, a.sum() - b),
        lambda a, b: (a * b[..., None], a.sum(-1) - b),
    ),
    "(3),(n),()->(n,3)": (
        lambda a, b, c: np.multiply.outer(b, a) + c,
        lambda a, b, c: b[..., :, None] * a[..., None, :] + c[..., None, None],
    ),
}


def is_several(signature):
    return signature.partition("->")[2].count("(") > 1


def of_numpy(signature):
    """`numpy.vectorize`, the truth."""
    function = CASES[signature][0]
    otypes = "d" * signature.partition("->")[2].count("(")
    return np.vectorize(function, signature=signature, otypes=otypes)


def in_place(function, several):
    def writes(*operands, out):
        results = function(*operands)
        for o, r in zip(out if several else (out,), results if several else (results,)):
            np.copyto(o, r)

    return writes


def bindings(signature):
    core, vectorized = CASES[signature]
    several = is_several(signature)
    return [
        jaxbind.bind(lambda *a: core(*a), signature),
        jaxbind.bind(lambda *a: vectorized(*a), signature, vectorized=True),
        jaxbind.bind(in_place(core, several), signature),
        jaxbind.bind(in_place(vectorized, several), signature, vectorized=True),
    ]


STYLES = range(4)


def values(shape, seed=0):
    return np.random.default_rng([seed, *shape]).integers(-4, 5, shape) * 1.0


def tree_equal(got, want):
    got, want = (r if isinstance(r, tuple) else (r,) for r in (got, want))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == np.shape(w) and g.dtype == np.asarray(w).dtype
        np.testing.assert_array_equal(g, w)


# Broadcasting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("signature", CASES)
@settings(max_examples=25)
@given(data=st.data())
def test_broadcasting_is_that_of_numpy_vectorize(signature, data):
    inputs = signature.partition("->")[0] + "->()"
    drawn = data.draw(hnp.mutually_broadcastable_shapes(signature=inputs, max_dims=3, max_side=3))
    operands = [values(shape, k) for k, shape in enumerate(drawn.input_shapes)]
    bound = bindings(signature)[data.draw(st.sampled_from(STYLES))]
    if data.draw(st.booleans(), label="jit"):
        bound = jax.jit(bound)
    tree_equal(bound(*operands), of_numpy(signature)(*operands))


@pytest.mark.parametrize("style", STYLES)
def test_no_iterations(style):
    """Loop dimensions of size 0, alone, beside 1 and beside core dimensions of size 0."""
    bound = bindings("(m,n),(n)->(m)")[style]
    for a, b, want in [
        ((0, 2, 3), (3,), (0, 2)),
        ((2, 3), (0, 3), (0, 2)),
        ((0, 2, 3), (1, 3), (0, 2)),
        ((4, 1, 2, 3), (0, 3), (4, 0, 2)),
        ((5, 0, 3), (3,), (5, 0)),
    ]:
        assert bound(np.ones(a), np.ones(b)).shape == want
    # an empty sum is a result like any other
    np.testing.assert_array_equal(bound(np.ones((4, 2, 0)), np.ones(0)), np.zeros((4, 2)))


@pytest.mark.parametrize("shapes", [((0, 3), (2, 3)), ((2, 3), (3, 3)), ((4, 1, 3), (5, 2, 3))])
def test_what_does_not_broadcast_is_refused(shapes):
    dot = bindings("(n),(n)->()")[0]
    with pytest.raises(ValueError, match="loop dimensions do not broadcast: argument 0"):
        dot(*map(values, shapes))
    with pytest.raises(ValueError):
        of_numpy("(n),(n)->()")(*map(values, shapes))


# vmap ---------------------------------------------------------------------------------------------


@st.composite
def nested(draw, signature):
    """Operands, and for each level of ``vmap``, outermost first: size, in_axes, out_axes."""
    inputs, _, outputs = signature.partition("->")
    loop = draw(st.booleans())
    drawn = draw(
        hnp.mutually_broadcastable_shapes(
            signature=inputs + "->()", max_dims=1 if loop else 0, max_side=3
        )
    )
    shapes = [list(shape) for shape in drawn.input_shapes]
    loops = max(
        len(s) - core.count(",") - (core != "()")
        for s, core in zip(shapes, inputs.replace("),(", ") (").split(), strict=True)
    )
    ranks = [
        loops + core.count(",") + (core != "()") for core in outputs.replace("),(", ") (").split()
    ]
    levels = []
    for depth in range(draw(st.integers(1, 3))):
        size = draw(st.integers(0, 3))
        mapped = draw(st.lists(st.booleans(), min_size=len(shapes), max_size=len(shapes)))
        if not any(mapped):
            mapped[draw(st.integers(0, len(shapes) - 1))] = True
        in_axes = []
        for shape, m in zip(shapes, mapped, strict=True):
            if not m:
                in_axes.append(None)
                continue
            axis = draw(st.integers(0, len(shape)))
            shape.insert(axis, size)
            in_axes.append(axis - len(shape) if draw(st.booleans()) else axis)
        out_axes = []
        for rank in ranks:
            rank += depth + 1
            axis = draw(st.integers(-rank, rank - 1))
            out_axes.append(axis)
        levels.insert(0, (size, tuple(in_axes), tuple(out_axes)))
    return [values(tuple(shape), k) for k, shape in enumerate(shapes)], levels


def mapped_in_python(function, levels, operands):
    """The truth: a loop per level, then stacking along ``out_axes``."""
    if not levels:
        results = function(*operands)
        return [np.asarray(r) for r in (results if isinstance(results, tuple) else (results,))]
    (size, in_axes, out_axes), *inner = levels

    def at(index):
        return mapped_in_python(
            function,
            inner,
            [o if a is None else o.take(index, a) for o, a in zip(operands, in_axes, strict=True)],
        )

    if size == 0:  # take the shapes from one iteration on nothing in particular
        operands = [
            o if a is None else np.zeros(np.insert(np.delete(o.shape, a), a % o.ndim, 1))
            for o, a in zip(operands, in_axes, strict=True)
        ]
        return [np.stack([r], a).take([], a) for r, a in zip(at(0), out_axes, strict=True)]
    each = [at(index) for index in range(size)]
    return [np.stack(rs, a) for rs, a in zip(zip(*each, strict=True), out_axes, strict=True)]


def vmapped(function, levels, several):
    for _, in_axes, out_axes in reversed(levels):
        function = jax.vmap(function, in_axes, out_axes if several else out_axes[0])
    return function


@pytest.mark.parametrize("signature", every(2, CASES))
@settings(max_examples=40)
@given(data=st.data())
def test_vmap_is_a_loop(signature, data):
    operands, levels = data.draw(nested(signature))
    style = data.draw(st.sampled_from(STYLES))
    function = vmapped(bindings(signature)[style], levels, is_several(signature))
    if data.draw(st.booleans(), label="jit"):
        function = jax.jit(function)
    want = mapped_in_python(of_numpy(signature), levels, operands)
    tree_equal(function(*operands), tuple(want))


@settings(max_examples=25)
@given(data=st.data())
def test_without_a_signature_vmap_alone_loops(data):
    operands, levels = data.draw(nested("(m,n),(n)->(m)"))
    core, vectorized = CASES["(m,n),(n)->(m)"]
    for index, rank in enumerate((2, 1)):
        mapped = sum(in_axes[index] is not None for _, in_axes, _ in levels)
        assume(operands[index].ndim == rank + mapped)  # no loop dimensions of its own

    def struct(a, b):
        return jax.ShapeDtypeStruct(a.shape[:-1], a.dtype)

    f = [
        jaxbind.bind(lambda a, b: core(a, b), out=struct),
        jaxbind.bind(lambda a, b: vectorized(a, b), out=struct, vectorized=True),
    ][data.draw(st.integers(0, 1))]
    want = mapped_in_python(of_numpy("(m,n),(n)->(m)"), levels, operands)
    tree_equal(vmapped(f, levels, False)(*operands), tuple(want))


@pytest.mark.parametrize("style", STYLES)
def test_any_order_of_vmap_and_jit_is_the_same(style):
    f = bindings("(m,n),(n)->(m)")[style]
    a, b = values((4, 3, 2, 5)), values((3, 5, 4))

    def both(g):
        return jax.vmap(jax.vmap(g, (0, 0)), (0, 2))

    want = both(lambda a, b: a @ b)(a, b)
    for function in (
        both(f),
        jax.jit(both(f)),
        both(jax.jit(f)),
        jax.vmap(jax.jit(jax.vmap(f)), (0, 2)),
        lambda a, b: jax.vmap(jax.vmap(f), (1, 0))(a, b.transpose(0, 2, 1)).transpose(1, 0, 2),
        lambda a, b: f(a, b.transpose(2, 0, 1)),  # the same as loop dimensions
        lambda a, b: jax.lax.map(lambda v: jax.vmap(f)(*v), (a, b.transpose(2, 0, 1))),
    ):
        np.testing.assert_array_equal(function(a, b), want)


def test_operands_that_are_pytrees():
    f = jaxbind.bind(out=lambda p, v: v)(lambda p, v: p["a"] * v + p["b"][0])
    p = {"a": values((4,)), "b": (values((3, 4)),)}
    v = values((3,))
    got = jax.vmap(f, ({"a": 0, "b": (1,)}, None))(p, v)
    want = [p["a"][k] * v + p["b"][0][:, k] for k in range(4)]
    np.testing.assert_array_equal(got, want)
    results = jaxbind.bind(out=lambda v: {"s": v, "t": (v, v)})(lambda v: {"s": v, "t": (v, -v)})
    got = jax.vmap(results, out_axes={"s": 0, "t": (1, -1)})(p["b"][0])
    np.testing.assert_array_equal(got["t"][0], p["b"][0].T)
    np.testing.assert_array_equal(got["t"][1], -p["b"][0].T)


def test_named_axes():
    f = bindings("(n),(n)->()")[0]
    a, b = values((4, 3)), values((3,))
    got = jax.vmap(lambda a: f(a, b) - jax.lax.pmean(f(a, b), "i"), axis_name="i")(a)
    np.testing.assert_allclose(got, a @ b - np.mean(a @ b), atol=1e-14)


def test_results_that_do_not_depend_on_a_loop():
    """A vectorized function may return size 1 where its operands have it; jaxbind fills up."""
    f = jaxbind.bind("(n),()->(n),()", vectorized=True)(lambda a, b: (2 * a, 3 * b))
    a, b = values((4, 3)), values((5,))
    twice, thrice = jax.vmap(jax.vmap(f, (0, None)), (None, 0))(a, b)
    np.testing.assert_array_equal(twice, np.broadcast_to(2 * a, (5, 4, 3)))
    np.testing.assert_array_equal(thrice, np.broadcast_to(3 * b[:, None], (5, 4)))


# One foreign call ---------------------------------------------------------------------------------


def compiled_text(function, *operands):
    return jax.jit(function).lower(*operands).compile().as_text()


@settings(max_examples=40)
@given(data=st.data())
def test_one_foreign_call_per_batch(data):
    signature = data.draw(st.sampled_from(["(),()->()", "(n),(n)->()", "(n),()->(n),()"]))
    operands, levels = data.draw(nested(signature))
    vectorize = data.draw(st.booleans())
    calls = []

    def counted(*a):
        calls.append([v.shape for v in a])
        return CASES[signature][vectorize](*a)

    bound = jaxbind.bind(counted, signature, vectorized=vectorize)
    function = vmapped(bound, levels, is_several(signature))
    text = compiled_text(function, *operands)
    assert text.count("custom-call(") <= 1  # 0 where all results are empty
    assert "while" not in text and not calls
    results = jax.block_until_ready(jax.jit(function)(*operands))
    sizes = [r.size for r in jax.tree.leaves(results)]
    iterations = sizes[-1]  # its core is ()
    if vectorize:
        assert len(calls) == bool(any(sizes))
        for shapes in calls:  # all have the same number of loop dimensions
            cores = signature.partition("->")[0].split("),(")
            loops = [len(s) - ("n" in c) for s, c in zip(shapes, cores, strict=True)]
            assert len(set(loops)) == 1
    else:
        assert len(calls) == iterations


@pytest.mark.parametrize("batch", [1, 2, 3, 1000])
def test_number_of_calls(batch):
    calls = []
    f = jaxbind.bind("()->()")(lambda v: calls.append(v.shape) or 2 * v)
    g = jaxbind.bind("()->()", vectorized=True)(lambda v: calls.append(v.shape) or 2 * v)
    for function, want in [(f, [()] * batch), (g, [(batch,)])]:
        for transform in (jax.vmap, lambda h: jax.jit(jax.vmap(h))):
            calls.clear()
            transform(function)(np.arange(1.0 * batch)).block_until_ready()
            assert calls == want


def test_operands_that_are_not_mapped_are_not_copied_out():
    """Neither tiled in the program nor converted more than once."""
    f = jaxbind.bind("(n),()->()")(lambda v, s: v.sum() * s)
    v, s = np.ones(1000), np.arange(50.0)
    text = compiled_text(jax.vmap(f, (None, 0)), v, s)
    assert "50,1000" not in text and "broadcast" not in text
    np.testing.assert_array_equal(jax.vmap(f, (None, 0))(v, s), 1000 * s)


def test_iterations_run_in_order():
    seen = []
    f = jaxbind.bind("(),()->()")(lambda a, b: seen.append((float(a), float(b))) or a)
    f(np.arange(3.0)[:, None], np.arange(2.0)).block_until_ready()
    assert seen == [(a, b) for a in (0, 1, 2) for b in (0, 1)]


# Compilations -------------------------------------------------------------------------------------


@contextlib.contextmanager
def compilations():
    """A list that grows by one with each compilation."""
    seen = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("style", STYLES)
def test_repeated_eager_vmap_compiles_once(style):
    f = bindings("(m,n),(n)->(m)")[style]
    calls = [
        lambda a, b: jax.vmap(f, (0, None))(a, b),
        lambda a, b: jax.vmap(jax.vmap(f, (0, None)), (None, 0))(a, b[None]),
        lambda a, b: jax.vmap(lambda a: f(a, b))(a),
        lambda a, b: f(a, b),
        lambda a, b: f(jnp.asarray(a), jnp.asarray(b)),
    ]
    a, b = values((3, 2, 4)), values((4,))
    with compilations() as seen:
        for call in calls:
            call(a, b)
        first = len(seen)
        assert first > 0
        for call, _ in itertools.product(calls, range(5)):
            call(a + 1, b)
        assert len(seen) == first


def test_each_static_value_compiles_once():
    f = jaxbind.bind("()->()")(lambda v, *, k: v * k)
    with compilations() as seen:
        for _, k in itertools.product(range(4), (1, 2, 1.0, float("nan"), np.float64("nan"))):
            jax.vmap(lambda v: f(v, k=k))(np.ones(3)), f(1.0, k=k)
        assert len(seen) <= 12  # two each, and what JAX needs for itself


# def_vmap -----------------------------------------------------------------------------------------


def with_rule():
    """``a @ x`` whose rule uses one matrix product, and its twin in JAX."""
    calls = []
    matvec = jaxbind.bind("(m,n),(n)->(m)")(lambda a, x: calls.append("matvec") or a @ x)
    matmul = jaxbind.bind("(m,n),(n,k)->(m,k)")(lambda a, b: calls.append("matmul") or a @ b)

    @matvec.def_vmap
    def rule(axis_size, in_batched, a, x):
        a_batched, x_batched = in_batched
        assert a_batched or x_batched
        if not a_batched:
            return matmul(a, x.T).T, True
        x = x if x_batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        return jnp.stack([matvec(*v) for v in zip(a, x, strict=True)]), True

    return matvec, calls


@settings(max_examples=15)
@given(data=st.data())
def test_def_vmap(data):
    matvec, _ = with_rule()
    operands, levels = data.draw(nested("(m,n),(n)->(m)"))
    assume(all(size for size, _, _ in levels))  # the rule stacks
    want = mapped_in_python(of_numpy("(m,n),(n)->(m)"), levels, operands)
    tree_equal(vmapped(matvec, levels, False)(*operands), tuple(want))


def test_def_vmap_replaces_the_loop():
    matvec, calls = with_rule()
    a, x = values((2, 3)), values((5, 3))
    for function in (jax.vmap(matvec, (None, 0)), jax.jit(jax.vmap(matvec, (None, 0))), matvec):
        calls.clear()
        np.testing.assert_array_equal(function(a, x), x @ a.T)
        assert calls == ["matmul"]
    calls.clear()
    np.testing.assert_array_equal(jax.vmap(matvec, (0, None))(values((4, 2, 3)), x[0]),
                                  values((4, 2, 3)) @ x[0])  # fmt: skip
    assert calls == ["matvec"] * 4


def test_def_vmap_with_results_that_are_not_mapped():
    f = jaxbind.bind("(),()->(),()")(lambda a, b: (a + b, 2 * b))
    f.def_vmap(lambda size, mapped, a, b: (f_all(a, b), (True, mapped[1])))
    f_all = jaxbind.bind(out=lambda a, b: (a, b))(lambda a, b: (a + b, 2 * b))
    total, twice = jax.vmap(f, (0, None), (0, None))(np.arange(3.0), 5.0)
    np.testing.assert_array_equal(total, [5.0, 6.0, 7.0])
    assert twice.shape == () and twice == 10.0


@pytest.mark.parametrize(
    "rule, says",
    [
        (lambda size, mapped, a: (a, True, 3), "vmap"),
        (lambda size, mapped, a: a, "vmap"),
        (
            lambda size, mapped, a: (a[:1], True),
            "returned float64.1. for result 0; wanted float64.3.",
        ),
        (lambda size, mapped, a: (a, False), "returned float64.3. for result 0; wanted float64"),
        (lambda size, mapped, a: (None, True), "f"),
        (lambda size, mapped, a: ((a, a), True), "f"),
        (lambda size, mapped, a: (a.astype("float32"), True), "f"),
    ],
)
def test_def_vmap_rules_that_return_something_else(rule, says):
    f = jaxbind.bind("()->()", name="f")(lambda a: a)
    f.def_vmap(rule)
    with pytest.raises((TypeError, ValueError), match=says) as caught:
        jax.vmap(f)(np.arange(3.0))
    assert "f" in str(caught.value) and "rule" in str(caught.value)


# Python's own mistakes ----------------------------------------------------------------------------


@pytest.mark.parametrize("in_axes", [0, (0, None), (None, 0)])
def test_wrong_shapes_under_vmap_name_the_core(in_axes):
    f = jaxbind.bind("(n),(n)->()", name="f")(lambda a, b: a @ b)
    a, b = np.ones((2, 3)), np.ones((2, 4))
    with pytest.raises(ValueError, match="f: size . of core dimension n in argument 1"):
        jax.vmap(f, in_axes)(*(o if ax == 0 else o[0] for o, ax in zip(
            (a, b), (in_axes,) * 2 if in_axes == 0 else in_axes, strict=True)))  # fmt: skip
