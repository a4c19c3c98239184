"""`bind` itself: ways to call it, results, operands, static parameters, kinds of callables."""

import collections
import copy
import ctypes
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import gc
import inspect
import math
import operator
import pickle
import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special.cython_special
from hypothesis import given, settings

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

x = np.arange(3.0)


def says(error, *texts):
    return pytest.raises(error, match=".*".join(re.escape(text) for text in texts))


def scaled(v, factor=2.0, *, power=1):
    """Scale and raise."""
    return v * factor**power


def same(v):
    return v


# Ways to call it ----------------------------------------------------------------------------------


def test_every_way_is_the_same():
    out = jax.ShapeDtypeStruct((), float)
    made = [
        jaxbind.bind(scaled, "(),()->()"),
        jaxbind.bind("(),()->()")(scaled),
        jaxbind.bind(scaled, out=out),
        jaxbind.bind(out=out)(scaled),
        jaxbind.bind(None, "(),()->()")(scaled),
        jaxbind.bind(scaled, out=lambda v, factor=0.0, *, power=1: v),
        jaxbind.bind(scaled, out=lambda *operands: operands[0]),
        jaxbind.bind(scaled, out="infer"),
        jaxbind.bind("(),()->()", dtype=float, vectorized=True)(scaled),
        jaxbind.bind(jaxbind.bind(scaled, out="infer").function, "(),()->()"),
    ]
    for f in made:
        for call in (f, jax.jit(f, static_argnames="power")):
            assert call(3.0) == 6.0 and call(3.0, 4.0) == 12.0
            assert call(3.0, power=3) == 24.0 and call(3.0, factor=4.0, power=0) == 3.0
            assert call(v=3.0) == 6.0 and call(factor=5.0, v=3.0) == 15.0
        assert f.function is scaled
        assert (f.__name__, f.__doc__) == ("scaled", "Scale and raise.")
        assert f.__module__ == scaled.__module__
        assert repr(f) == "<jaxbind.Binding scaled>"


def test_a_binding_is_a_value():
    f = jaxbind.bind(scaled, "(),()->()")
    assert f == f and f != jaxbind.bind(scaled, "(),()->()")
    assert len({f, f, jaxbind.bind(scaled, "(),()->()")}) == 2
    assert copy.copy(f) is f and copy.deepcopy({"f": f})["f"] is f
    for maker in (functools.partial, lambda g, **k: functools.wraps(g)(lambda *a: g(*a, **k))):
        assert maker(f, power=2)(3.0, 3.0) == 27.0
    with says(TypeError, "cannot pickle <jaxbind.Binding scaled>", "Define it at the top"):
        pickle.dumps(f)


@jaxbind.bind("()->()")
def importable(v):
    return v + 1


@importable.def_vjp
def importable_vjp(primals, cotangent):
    return (cotangent,)


def test_an_importable_binding_is_pickled_by_name():
    assert pickle.loads(pickle.dumps(importable)) is importable
    loaded = pickle.loads(pickle.dumps(importable.vjp))
    assert loaded.definition is importable.vjp.definition


def test_what_a_process_lacks_is_not_unpickled():
    dumped = pickle.dumps(importable).replace(b"importable", b"impossible")
    with says(
        LookupError, "cannot unpickle the binding", "impossible", "both processes can import"
    ):
        pickle.loads(dumped)


def test_two_bindings_of_one_function_are_two():
    """Other options, another function: nothing of one leaks into the other."""
    seen = []

    def function(v):
        seen.append(v.dtype)
        return v * 2

    narrow = jaxbind.bind(function, "()->()", compute_dtype="float32")
    wide = jaxbind.bind(function, "()->()", compute_dtype="complex128")
    plain = jaxbind.bind(function, "()->()")
    jax.jit(lambda v: (narrow(v), wide(v), plain(v)))(1.0)
    assert sorted(map(str, seen)) == ["complex128", "float32", "float64"]


# Results ------------------------------------------------------------------------------------------

Pair = collections.namedtuple("Pair", "p q")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    a: object
    b: object


TREES = {
    "array": x,
    "tuple": (x, 2 * x),
    "tuple of one": (x,),
    "list": [x, x + 1],
    "dict": {"b": x, "a": 2 * x},
    "namedtuple": Pair(x, x[:2]),
    "dataclass": State(x, x[:1]),
    "none": {"a": x, "b": None},
    "deep": (x, [x, {"k": Pair(x, State(x, None))}], ()),
    "ordered": collections.OrderedDict(b=x, a=2 * x),
    "default": collections.defaultdict(list, a=x),
}
trees = pytest.mark.parametrize("name", TREES)


def tree_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def twice(tree):
    return jax.tree.map(lambda v: 2 * v, tree)


@trees
@pytest.mark.parametrize("kind", ["returned", "written", "constant", "infer"])
def test_pytrees_in_and_out(name, kind):
    tree, types = TREES[name], []

    def returned(s):
        types.append(type(s))
        assert all(type(v) is np.ndarray for v in jax.tree.leaves(s))
        return twice(s)

    def written(s, *, out):
        types.extend([type(s), type(out)])
        jax.tree.map(lambda o, v: np.multiply(v, 2, out=o), out, s)

    structs = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), tree)
    f = {
        "returned": lambda: jaxbind.bind(returned, out=same),
        "written": lambda: jaxbind.bind(written, out=same),
        "constant": lambda: jaxbind.bind(returned, out=structs),
        "infer": lambda: jaxbind.bind(returned, out="infer"),
    }[kind]()
    stacked = jax.tree.map(lambda v: np.stack([v, -v]), tree)
    tree_equal(f(tree), twice(tree))
    tree_equal(jax.jit(f)(tree), twice(tree))
    tree_equal(jax.vmap(f)(stacked), twice(stacked))
    assert set(types) == {type(tree)}
    if name != "array":
        assert type(f(tree)) is type(tree)


@trees
def test_structures_that_do_not_fit(name):
    if name in ("array", "tuple of one"):
        return
    for wrong in (x, (x, x, x), {"z": x}, None, "text", [[x]]):
        if jax.tree.structure(wrong) == jax.tree.structure(TREES[name]):
            continue
        f = jaxbind.bind(lambda s: wrong, out=same, name="f")
        with says(jax.errors.JaxRuntimeError, "f returned"):
            f(TREES[name])


def test_several_results_by_signature():
    f = jaxbind.bind("(n)->(),(n),()")(lambda v: (v.sum(), v, 3))
    g = jaxbind.bind("(n)->(),(n),()")(lambda v: [v.sum(), v, 3.0])
    for result in (f(x), g(x), jax.jit(f)(x)):
        assert type(result) is tuple and len(result) == 3
        tree_equal(result, (np.sum(x), x, np.float64(3)))

    @jaxbind.bind("(n)->(),(n)")
    def h(v, *, out):
        assert type(out) is tuple and out[0].shape == ()
        out[0][...], out[1][...] = v.sum(), v

    tree_equal(h(x), (np.sum(x), x))


def test_results_without_operands():
    f = jaxbind.bind(out=jax.ShapeDtypeStruct((2,), float))(lambda: np.ones(2))
    g = jaxbind.bind("->(2),()")(lambda *, out: [o.fill(3) for o in out] and None)
    np.testing.assert_array_equal(f(), [1, 1])
    np.testing.assert_array_equal(jax.jit(lambda v: v + f())(1.0), [2, 2])
    np.testing.assert_array_equal(jax.vmap(lambda v: v + g()[0])(x), (x[:, None] + [3, 3]))


def test_no_results_are_refused():
    for out in (lambda v: None, (), {}, [], lambda v: {"a": None}):
        with pytest.raises(TypeError, match="f: out="):
            jaxbind.bind(lambda v: None, out=out, name="f")(1.0)


def test_out_is_asked_with_structs_and_the_static_parameters_that_it_names():
    asked = []

    def shape(v, w, *, n, rest=None):
        asked.append((v, w, n, rest))
        return jax.ShapeDtypeStruct((n, *w["b"].shape), v.dtype)

    @jaxbind.bind(out=shape)
    def f(v, w, *, n, scale=2.0):
        return np.full((n, *w["b"].shape), v.sum() * scale)

    got = f(x, {"b": np.ones((4, 1))}, n=2)
    np.testing.assert_array_equal(got, np.full((2, 4, 1), 6.0))
    (v, w, n, rest), *more = asked
    assert (v.shape, v.dtype, w["b"].shape, n, rest) == ((3,), np.float64, (4, 1), 2, None)
    assert not hasattr(v, "sum") and not more
    f(x + 1, {"b": np.ones((4, 1))}, n=2)
    assert len(asked) == 1


def test_out_may_be_arrays_and_anything_with_a_shape():
    for out in (x, jnp.asarray(x), jax.eval_shape(lambda: x), lambda v: x, lambda v: np.zeros(3)):
        np.testing.assert_array_equal(jaxbind.bind(lambda v: v * x, out=out)(2.0), 2 * x)


WAYS = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "vmap": lambda f: lambda v: jax.vmap(f)(v[None])[0],
    "shapes": lambda f: lambda v: jnp.zeros_like(jax.eval_shape(f, v)),
}


@pytest.mark.parametrize("way", WAYS)
def test_out_may_compute_with_jax(way):
    """While JAX traces a call there is no trace of its own to compute with (jax 0.12)."""

    def shape(v):
        return jax.ShapeDtypeStruct((int(jnp.prod(jnp.asarray((*v.shape, 2)))),), v.dtype)

    for out in (shape, lambda v: jnp.concatenate([jnp.zeros(v.shape), jnp.ones(v.shape)])):
        f = jaxbind.bind(lambda v: np.concatenate([v, v]), out=out)
        assert WAYS[way](f)(x).shape == (6,)


def test_infer_runs_a_function_that_calls_jax():
    f = jaxbind.bind(lambda v: np.asarray(jnp.sort(v)), out="infer", allow_jax=True)
    np.testing.assert_array_equal(f(-x), np.sort(-x))


def test_infer_runs_once_on_zeros():
    seen = []

    @jaxbind.bind(out="infer")
    def f(v, *, n):
        seen.append(v.copy())
        return np.repeat(v, n), v.sum()

    for _ in range(2):
        tree_equal(f(x, n=2), (np.repeat(x, 2), np.sum(x)))
    np.testing.assert_array_equal(seen, [0 * x, x, x])
    assert f(x, n=3)[0].shape == (9,)
    with says(TypeError, "fails: out='infer' runs the function once on zeros, and that raised"):
        jaxbind.bind(lambda v: [][0], out="infer", name="fails")(x)


# Operands -----------------------------------------------------------------------------------------


@trees
@pytest.mark.parametrize("keyword", [False, True])
def test_operands_are_pytrees(name, keyword):
    tree = TREES[name]
    f = jaxbind.bind(out=jax.ShapeDtypeStruct((), float))(
        lambda a, s, b=1.0: sum(float(np.sum(v)) for v in jax.tree.leaves(s)) + a * b
    )
    want = sum(np.sum(v) for v in jax.tree.leaves(tree)) + 2.0
    assert (f(a=2.0, s=tree) if keyword else f(2.0, tree)) == want
    assert jax.jit(f)(2.0, tree) == want


def test_by_signature_the_leaves_are_the_operands():
    f = jaxbind.bind("(n),(),(n)->(n)")(lambda s, w: s["a"] * s["b"] + w)
    np.testing.assert_array_equal(f({"b": 2.0, "a": x}, x), 3 * x)
    np.testing.assert_array_equal(
        f({"b": np.ones((2, 1)), "a": x}, x), np.broadcast_to(2 * x, (2, 1, 3))
    )
    with says(TypeError, "got 4 operand arrays; the signature (n),(),(n)->(n) has 3"):
        f({"b": 2.0, "a": x}, [x, x])


def test_defaults_of_positional_parameters():
    seen = []

    def function(a, b=2.0, c=None, *, d=4):
        seen.append((type(b), c is None, d))
        return a * b * (1.0 if c is None else c) * d

    by_signature = jaxbind.bind(function, "(),()->()")
    assert by_signature(1.0) == 8.0 and seen[-1] == (np.ndarray, True, 4)
    assert by_signature(1.0, 3.0, d=1) == 3.0 and by_signature(1.0, b=5.0) == 20.0
    with says(
        TypeError,
        "got 3 operand arrays; the signature (),()->() has 2. argument 2 (c) is one too many: all"
        " but keyword-only parameters are operands. Of a function that is not yours, bind one that"
        " has it behind a *: lambda x, *, c: f(x, c)",
    ):
        by_signature(1.0, 2.0, c=3.0)
    by_struct = jaxbind.bind(function, out=jax.ShapeDtypeStruct((), float))
    assert by_struct(1.0) == 8.0 and by_struct(1.0, c=3.0) == 24.0
    assert by_struct(1.0, 2.0, None) == 8.0 and by_struct(1.0, c=None) == 8.0


NUMPY = [
    (np.fft.fft, "(n)->(n)", (x + 0j,)),
    (np.fft.ifft, "(n)->(n)", (x + 1j,)),
    (np.sort, "(n)->(n)", (-x,)),
    (np.cumsum, "(n)->(n)", (x,)),
    (np.sum, "(n)->()", (x,)),
    (np.median, "(n)->()", (x,)),
    (np.dot, "(n),(n)->()", (x, x)),
    (np.clip, "(n),(),()->(n)", (x, 0.5, 1.5)),
    (np.interp, "(n),(m),(m)->(n)", (x, x, x**2)),
    (np.linalg.solve, "(n,n),(n)->(n)", (np.eye(3) * 2, x)),
    (np.linalg.eigh, "(n,n)->(n),(n,n)", (np.eye(3),)),
    (np.linalg.slogdet, "(n,n)->(),()", (np.eye(3) * 2,)),
    (np.add.reduce, "(n)->()", (x,)),
    (np.vectorize(lambda a: a + 1), "()->()", (x,)),
    (np.polynomial.Polynomial([1, 2, 3]), "()->()", (x,)),
    (np.poly1d([1.0, 2.0]), "(n)->(n)", (x,)),
    (scipy.special.logsumexp, "(n)->()", (x,)),
    (scipy.special.erf, "(n)->(n)", (x,)),
]


@pytest.mark.parametrize("function, signature, operands", NUMPY,
                         ids=lambda v: getattr(v, "__name__", ""))  # fmt: skip
def test_functions_of_numpy_as_they_are(function, signature, operands):
    f = jaxbind.bind(function, signature)
    want = tuple(function(*operands)) if "," in signature.split("->")[1].replace("n,n", "") else (
        function(*operands))  # fmt: skip
    for call in (f, jax.jit(f)):
        jax.tree.map(np.testing.assert_allclose, call(*operands), want)


def test_wrong_operands_by_name():
    f = jaxbind.bind(scaled, "(),()->()")
    with says(TypeError, "scaled: got 3 positional arguments; it takes 1 to 2 (v, factor). Static"):
        f(1.0, 2.0, 3.0)
    with says(TypeError, "scaled: got 0 positional arguments"):
        f()
    with says(TypeError, "scaled: unexpected keyword argument z=1; it takes"):
        f(1.0, z=1)
    with says(TypeError, "scaled: got two values for argument v"):
        f(1.0, v=1.0)
    with says(TypeError, "scaled: ", "missing", "v"):
        f(factor=1.0)
    for value, kind in [("text", "str"), (object(), "object"), ({1.0}, "set"), (b"a", "bytes")]:
        with says(TypeError, f"scaled: argument 1 (factor) is a {kind}; operands are arrays, num"):
            f(1.0, value)
    with says(TypeError, "scaled: argument 1 (factor['a'][0]) is a str"):
        f(1.0, {"a": ["text"]})
    positional = jaxbind.bind(lambda a, /, b: a - b, "(),()->()", name="g")
    assert positional(3.0, b=1.0) == 2.0
    with says(TypeError, "g: unexpected keyword argument a=3.0; it takes b"):
        positional(a=3.0, b=1.0)


def test_variable_numbers_of_operands():
    def function(*operands, **static):
        return sum(operands) * static.get("k", 1)

    f = jaxbind.bind(function, out=lambda *operands, **static: operands[0])
    assert f(1.0) == 1.0 and f(1.0, 2.0) == 3.0 and f(*x, k=5) == 15.0
    assert f(1.0, k=2) == 2.0 and f(1.0) == 1.0
    g = jaxbind.bind(function, "(),()->()")
    assert g(1.0, 2.0, k=2) == 6.0
    with says(TypeError, "got 3 operand arrays; the signature (),()->() has 2"):
        g(1.0, 2.0, 3.0)


def test_where_out_may_stand():
    def last(a, b, out):
        out[...] = a - b

    def named(a, b, *, out):
        out[...] = a - b

    def defaulted(a, b, out=None):
        assert out is not None
        np.subtract(a, b, out=out)
        return out

    for function in (last, named, defaulted):
        f = jaxbind.bind(function, "(),()->()")
        assert f(3.0, 1.0) == 2.0 and f(3.0, b=1.0) == 2.0
        with says(TypeError, "unexpected keyword argument out="):
            f(3.0, 1.0, out=np.zeros(()))

    def first(out, a, b):
        out[...] = a - b

    def middle(a, out, b):
        out[...] = a - b

    def positional(a, b, out, /):
        out[...] = a - b

    for function in (first, middle, positional):
        try:
            f = jaxbind.bind(function, "(),()->()")
        except TypeError as refused:  # or else it must work
            assert function.__name__ in str(refused) and "out" in str(refused)
        else:
            assert f(3.0, 1.0) == 2.0


def test_names_without_a_meaning():
    f = jaxbind.bind("()->()")(lambda v, *, loop=1, wrt=2, name=3: v + loop + 10 * wrt + 100 * name)
    assert f(0.0) == 321.0 and f(0.0, loop=0, wrt=0, name=0) == 0.0


# Static parameters --------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1
    GREEN = 1.0 + 1


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass(frozen=True)
class Options:
    level: object = 1
    deep: tuple = ()


class Name(str):
    __slots__ = ()


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr")


def function_a(v):
    return v


ALIKE = [  # equal for ``==``, or nearly; not the same for a function
    [1, 1.0, True, 1 + 0j, np.float64(1), np.float32(1), np.int64(1), np.int32(1), np.bool_(True),
     Level.LOW, fractions.Fraction(1), decimal.Decimal(1)],
    [0, 0.0, -0.0, False, np.float64(0.0), np.float64(-0.0), np.float32(-0.0), 0j, complex(0, -0.0),
     complex(-0.0, 0), np.complex128(complex(0.0, -0.0)), np.complex128(0)],
    [float("nan"), np.float64("nan"), np.float32("nan"), float("inf"), float("-inf"),
     complex("nan"), complex(0, float("nan"))],
    [(1,), (1.0,), (True,), (0.0,), (-0.0,), ((1,),), ((1.0,),), Pair(1, 2), Pair(1.0, 2), (1, 2),
     (float("nan"),), (1, (2, (None, 0.0))), (1, (2, (None, -0.0)))],
    [Options(), Options(1.0), Options(True), Options(0.0), Options(-0.0), Options(deep=(1,)),
     Options(deep=(1.0,)), Options(Options(1)), Options(Options(1.0))],
    ["1", b"1", Name("1"), "", b"", "ü", "\0", "a'b\"c\\", "\ud800", "1 ", "#1"],
    [None, ..., NotImplemented, (), frozenset(), frozenset({1}), frozenset({1.0}),
     frozenset({True}), frozenset({(0.0,)}), frozenset({(-0.0,)})],
    [range(0, 3, 2), range(0, 4, 2), range(0), range(1, 1)],
    [len, np.sin, np.cos, function_a, same, math.sin, int, float, np.float64, np.dtype("f8"), "f8"],
    [10**30, -(10**30), 2**63, 10**5000, 10**5000 + 1],
    [Colour.RED, Colour.GREEN, 2.0, datetime.date(2026, 11, 23), datetime.timedelta(1),
     np.datetime64("2026-11-23"), np.datetime64("2026-11-23T00"), Unprintable()],
]  # fmt: skip


@pytest.mark.parametrize("values", ALIKE, ids=range(len(ALIKE)))
@pytest.mark.parametrize("together", [False, True], ids=["eager", "one program"])
def test_static_parameters_arrive_as_they_were_given(values, together):
    got = []

    @jaxbind.bind("()->()")
    def f(v, *, value):
        got.append(value)
        return v * len(got)

    if together:
        jax.block_until_ready(jax.jit(lambda v: [f(v, value=value) for value in values])(1.0))
        assert len(got) == len(values)
        for value in values:  # XLA may order the calls as it likes
            assert any(is_same(value, g) for g in got)
        return
    for _ in range(2):  # the second time from the caches
        got.clear()
        for value in values:
            f(1.0, value=value)
        assert len(got) == len(values)
        for value, g in zip(values, got, strict=True):
            assert is_same(value, g), (repr(value), repr(g))


def is_same(a, b):
    """Whether two values are the same, down to the sign of zero and the types inside."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, frozenset):
        return len(a) == len(b) and all(any(is_same(v, w) for w in b) for v in a)
    if dataclasses.is_dataclass(a):
        return all(is_same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, range):
        return (a.start, a.stop, a.step) == (b.start, b.stop, b.step)
    if isinstance(a, (int, str, bytes, enum.Enum)):
        return a == b
    if isinstance(a, (float, complex, np.generic, decimal.Decimal)):
        return repr(a) == repr(b)
    return a is b or a == b


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text()
    | st.binary() | st.floats(width=32).map(np.float32) | st.sampled_from([*Colour, Level.LOW, len])
)  # fmt: skip
hashables = st.recursive(
    leaves,
    lambda inner: st.tuples(inner) | st.tuples(inner, inner) | st.frozensets(inner, max_size=3)
    | st.builds(Options, inner) | st.builds(Pair, inner, inner),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=60)
@given(st.lists(hashables, min_size=1, max_size=3), st.booleans())
def test_any_hashable_value_is_a_static_parameter(values, compiled):
    got = []

    @jaxbind.bind("()->()")
    def f(v, *, one, two="default"):
        got.append((one, two))
        return v

    with jax.enable_x64(True):
        for value in values:
            (jax.jit(functools.partial(f, one=value)) if compiled else f)(
                1.0, **({} if compiled else {"one": value})
            )
            assert is_same(got[-1], (value, "default"))
            f(1.0, one=None, two=value)
            assert is_same(got[-1], (None, value))


@pytest.mark.parametrize(
    "value, kind",
    [([1], "list"), ({"a": 1}, "dict"), ({1}, "set"), (np.ones(2), "ndarray"),
     (jnp.ones(2), "Array"), (bytearray(b"a"), "bytearray"), ((1, [2]), "tuple"),
     (Options([1]), "Options"), (np.array(1.0), "ndarray")],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_unhashable_values_are_refused_by_name(value, kind):
    f = jaxbind.bind("()->()", name="f")(lambda v, *, a=1, b=2: v)
    for call in (f, jax.jit(lambda v, b: f(v, b=value))):
        with says(TypeError, "f: static parameter b=", "is unhashable", kind) as caught:
            call(1.0, b=value) if call is f else call(1.0, 0)
    assert "Pass a tuple instead of a list or an array, or make it a positional operand" in str(
        caught.value
    )


def test_traced_static_parameters_are_refused():
    f = jaxbind.bind("()->()", name="f")(lambda v, *, k: v * k)
    for call in (jax.jit(lambda k: f(1.0, k=k)), jax.grad(lambda k: f(1.0, k=k)),
                 lambda k: jax.vmap(lambda k: f(1.0, k=k))(jnp.ones(2) * k)):  # fmt: skip
        with says(TypeError, "f: static parameter k=", "static_argnames='k'"):
            call(2.0)
    assert jax.jit(f, static_argnames="k")(1.0, k=3) == 3.0


def test_static_parameters_of_calls():
    f = jaxbind.bind("()->()", name="f")(lambda v, *, a, b="d": v)
    with says(TypeError, "f: missing the static keyword argument a="):
        f(1.0)
    with says(
        TypeError, "f: got 2 positional arguments; it takes 1 (v). Static parameters are key"
    ):
        f(1.0, 2.0)
    with says(TypeError, "f: unexpected keyword argument c=", "it takes a, b"):
        f(1.0, a=1, c="x" * 1000)


def test_long_values_are_shortened_in_messages():
    f = jaxbind.bind("()->()", name="f")(lambda v, *, a: v)
    with pytest.raises(TypeError) as caught:
        f(1.0, a=list(range(10_000)))
    assert len(str(caught.value)) < 500


@settings(max_examples=10)
@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_keywords_does_not_matter(order):
    calls = []

    def shape(v, *, a, b, c, d):
        calls.append((a, b, c, d))
        return v

    f = jaxbind.bind(out=shape)(lambda v, *, a, b, c, d: v + a + 10 * b + 100 * c + 1000 * d)
    values = {"a": 1, "b": 2, "c": 3, "d": 4}
    with jax.enable_x64(True):
        for names in (order, sorted(order)):
            assert f(0.0, **{name: values[name] for name in names}) == 4321.0
    assert len(calls) == 1


# Kinds of callables -------------------------------------------------------------------------------


class Scaler:
    def __init__(self, k):
        self.k = k

    def __call__(self, v):
        return v * self.k

    def method(self, v, *, extra=1):
        return v * self.k * extra

    @classmethod
    def of_class(cls, v):
        return v * 10

    @staticmethod
    def static(v):
        return v * 20


class Slotted:
    """Neither attributes nor weak references."""

    __slots__ = ("k",)

    def __init__(self, k):
        self.k = k

    def __call__(self, v):
        return v * self.k

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1


def test_callables_of_every_kind():
    for f, want in [
        (Scaler(2), 6.0),
        (Scaler(3).method, 9.0),
        (Scaler.of_class, 30.0),
        (Scaler.static, 60.0),
        (functools.partial(Scaler(4).method, extra=5), 60.0),
        (functools.partial(operator.add, 3.0), 6.0),
        (functools.partial(functools.partial(operator.mul, 2.0)), 6.0),
        (Slotted(5), 15.0),
        (operator.neg, -3.0),
        (math.sqrt, math.sqrt(3)),
        (math.exp, math.exp(3)),
        (abs, 3.0),
        (float, 3.0),
        (np.float64, 3.0),
        (functools.wraps(scaled)(lambda *a, **k: scaled(*a, **k)), 6.0),
        (eval("lambda v: v + 1"), 4.0),
    ]:
        bound = jaxbind.bind(f, "()->()")
        assert bound(3.0) == want and jax.jit(bound)(3.0) == want
        np.testing.assert_array_equal(jax.vmap(bound)(np.full(2, 3.0)), [want] * 2)
        assert bound.function is f or bound.function == f
        assert repr(bound).startswith("<jaxbind.Binding ")


@pytest.mark.parametrize(
    "function, operands",
    [(math.hypot, (3.0, 4.0)), (operator.mul, (3.0, 4.0)), (math.atan2, (3.0, 4.0)), (max, (1.0, 2.0)),
     (pow, (2.0, 3.0)), (math.fsum, ([1.0, 2.0],)), (math.dist, ((1.0,), (2.0,)))],
    ids=lambda v: getattr(v, "__name__", ""),
)  # fmt: skip
def test_builtins(function, operands):
    f = jaxbind.bind(function, out="infer")
    want = function(*operands)
    for call in (f, jax.jit(f)):
        jax.tree.map(np.testing.assert_array_equal, call(*operands), want)


def test_callables_that_look_alike_are_not_confused():
    made = []
    for k in range(4):
        made += [
            jaxbind.bind(lambda v, k=k: v * k, "()->()"),
            jaxbind.bind(Scaler(k), "()->()"),
            jaxbind.bind(Scaler(k).method, "()->()"),
            jaxbind.bind(Slotted(k), "()->()"),
            jaxbind.bind(functools.partial(operator.mul, float(k)), "()->()"),
            jaxbind.bind(eval(f"lambda v: v * {k}"), "()->()"),
        ]
    want = [2.0 * k for k in range(4) for _ in range(6)]
    assert [float(f(2.0)) for f in made] == want
    assert [float(r) for r in jax.jit(lambda v: [f(v) for f in made])(2.0)] == want
    assert [float(jax.jit(f)(2.0)) for f in made] == want
    assert [float(f.function(2.0)) for f in made] == want


def test_callables_that_come_and_go_are_not_confused():
    """Memory is used again: an address must not stand for a function."""
    for k in range(60):
        f = jaxbind.bind(Slotted(k) if k % 2 else Scaler(k), "()->()")
        assert f(2.0) == 2.0 * k
        if k % 3 == 0:
            assert jax.jit(f)(2.0) == 2.0 * k
        del f
        if k % 20 == 0:
            gc.collect()


def test_one_name_for_several_bindings():
    made = [jaxbind.bind(Scaler(k), "()->()", name="shared") for k in range(3)]
    assert [float(r) for r in jax.jit(lambda v: [f(v) for f in made])(2.0)] == [0.0, 2.0, 4.0]
    assert [repr(f) for f in made] == ["<jaxbind.Binding shared>"] * 3
    del made[0]
    gc.collect()
    made.append(jaxbind.bind(Scaler(7), "()->()", name="shared"))
    assert [float(r) for r in jax.jit(lambda v: [f(v) for f in made])(2.0)] == [2.0, 4.0, 14.0]


@pytest.mark.parametrize(
    "name", ["a.b", "a:b", "a<b>", "jvp", "x.jvp", "ü", "a#2", '"quoted"', " "]
)
def test_any_text_is_a_name(name):
    f = jaxbind.bind(lambda v: v * 2, "()->()", name=name)
    f.def_jvp(lambda p, t: 3 * t[0])
    assert f(2.0) == 4.0 and jax.jit(f)(2.0) == 4.0
    assert jax.jvp(f, (2.0,), (1.0,))[1] == 3.0 and jax.jit(f.jvp)((2.0,), (1.0,)) == 3.0


def test_functions_that_are_replaced():
    """A module-level name may be bound anew, as notebooks do."""
    namespace = {"jaxbind": jaxbind, "__name__": "notebook"}
    got = []
    for k in range(3):
        exec(f"@jaxbind.bind('()->()')\ndef f(v):\n    return v * {k}", namespace)
        got += [float(namespace["f"](2.0)), float(jax.jit(namespace["f"])(2.0))]
    assert got == [0.0, 0.0, 2.0, 2.0, 4.0, 4.0]


def test_signature_for_tools():
    f = jaxbind.bind(scaled, "(),()->()")
    assert list(inspect.signature(f).parameters) == ["v", "factor", "power"]


# Ufuncs -------------------------------------------------------------------------------------------

UFUNCS = [np.sin, np.hypot, np.divmod, np.frexp, np.ldexp, np.add, np.equal, np.logical_and,
          np.bitwise_and, np.isnan, np.heaviside, np.spacing, np.float_power, np.arctan2,
          scipy.special.jv, scipy.special.sici, scipy.special.erfcx, scipy.special.expit,
          scipy.special.hyp2f1, scipy.special.ellipj, scipy.special.eval_legendre,
          scipy.special.wofz]  # fmt: skip
DTYPES = [
    "float64",
    "float32",
    "float16",
    "int8",
    "int64",
    "uint8",
    "bool",
    "complex64",
    "complex128",
]


@settings(max_examples=120)
@given(st.sampled_from(UFUNCS), st.data())
def test_ufuncs_are_as_numpy_calls_them(ufunc, data):
    """Values, dtypes, broadcasting, and which dtypes there are."""
    shapes = [data.draw(st.sampled_from([(), (3,), (2, 1), (2, 3)])) for _ in range(ufunc.nin)]
    names = [data.draw(st.sampled_from(DTYPES)) for _ in range(ufunc.nin)]
    operands = [
        (np.random.default_rng(k).random(shape) * 4).astype(name)
        for k, (shape, name) in enumerate(zip(shapes, names, strict=True))
    ]
    with jax.enable_x64(True), np.errstate(all="ignore"):
        f = jaxbind.bind(ufunc)
        try:
            want = ufunc(*operands)
        except TypeError:
            with pytest.raises(TypeError, match=f"{ufunc.__name__}: NumPy has no loop"):
                f(*operands)
            return
        got = (jax.jit(f) if data.draw(st.booleans()) else f)(*operands)
    for g, w in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, want)), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("number", [2, 2.0, True, 2 + 0j])
@pytest.mark.parametrize("name", ["int8", "uint8", "float16", "float32", "complex64"])
def test_ufuncs_with_python_numbers(number, name):
    operand = np.ones(3, name)
    got = jaxbind.bind(np.multiply)(operand, number)
    want = np.multiply(operand, number)
    assert got.dtype == want.dtype == jnp.multiply(operand, number).dtype
    np.testing.assert_array_equal(got, want)


def test_ufuncs_of_python():
    object_ufunc = np.frompyfunc(lambda a: a + 1.0, 1, 1)
    np.testing.assert_array_equal(jaxbind.bind(object_ufunc)(x), x + 1)
    with says(jax.errors.JaxRuntimeError, "returned object[3]"):
        jaxbind.bind(object_ufunc, "(n)->(n)")(x)
    f = jaxbind.bind(lambda v: object_ufunc(v).astype(float), "(n)->(n)")
    np.testing.assert_array_equal(f(x), x + 1)


def test_ufuncs_take_signatures_and_out_like_others():
    for f in (
        jaxbind.bind(np.add),
        jaxbind.bind(np.add, "(n),(n)->(n)"),
        jaxbind.bind(np.add, out=lambda a, b: a),
        jaxbind.bind(np.add, "(),()->()", vectorized=True),
        jaxbind.bind(np.add, compute_dtype="float32"),
    ):
        np.testing.assert_array_equal(f(x, x), 2 * x)
    with says(TypeError, "add: unexpected keyword argument where=True; it takes no keywords"):
        jaxbind.bind(np.add)(x, x, where=True)
    with says(TypeError, "add: got 1 positional argument"):
        jaxbind.bind(np.add)(x)


# Wrong options ------------------------------------------------------------------------------------


def pair(a, b):
    return a


@pytest.mark.parametrize(
    "options, error, text",
    [
        (
            {},
            TypeError,
            "pair: neither a signature nor out= is given, so its result's shape is unk",
        ),
        (
            {"out": "guess"},
            TypeError,
            "pair: out='guess' is not understood; give structs, a callab",
        ),
        ({"order": "A"}, ValueError, "pair: order='A' is not understood; it is 'C' or 'F'"),
        ({"order": None}, ValueError, "pair: order=None is not understood; it is 'C' or 'F'"),
        ({"linear": "z"}, TypeError, "pair: linear= names 'z', which is no argument; it has a, b"),
        ({"linear": ("a", "z")}, TypeError, "pair: linear= names 'z', which is no argument"),
        ({"linear": 2}, TypeError, "pair: linear= names 2, which is no argument; it has a, b"),
        ({"linear": None}, TypeError, "pair: linear="),
        ({"linear": 0.5}, TypeError, "pair: linear="),
        ({"nondiff": None}, TypeError, "pair: nondiff="),
        ({"nondiff": -1}, TypeError, "pair: nondiff= names -1, which is no argument"),
        ({"nondiff": True}, TypeError, "pair: nondiff= names True, which is no argument"),
        ({"multilinear": "c"}, TypeError, "pair: multilinear= names 'c', which is no argument"),
        ({"multilinear": 1.5}, TypeError, "pair: multilinear="),
        ({"linear": True, "multilinear": "a"}, TypeError, "pair: linear=True leaves nothing for"),
        ({"linear": "a", "nondiff": "a"}, TypeError, "pair: argument 0 (a) is named in"),
        ({"linear": "b", "multilinear": "b"}, TypeError, "pair: argument 1 (b) is named in"),
        ({"nondiff": "b", "multilinear": "b"}, TypeError, "pair: argument 1 (b) is named in"),
        ({"compute_dtype": "real"}, TypeError, "pair: compute_dtype='real' is no dtype"),
        ({"compute_dtype": bool}, TypeError, "pair: compute_dtype='bool' is no number type; give"),
        ({"compute_dtype": object}, TypeError, "pair: compute_dtype='object' is no number type"),
        (
            {"dtype": float},
            TypeError,
            "pair: dtype=<class 'float'> goes with a signature; out= giv",
        ),
        ({"name": 3}, TypeError, "name=3"),
        ({"name": ""}, ValueError, "bind(name=''): a name is a string that is not empty"),
        ({"name": "a!jvp"}, ValueError, "without '!', which leads from a function's name to its"),
    ],
)
def test_wrong_options(options, error, text):
    if options and "out" not in options:
        options = {"out": "infer", **options}
    for declare in (lambda: jaxbind.bind(pair, **options), lambda: jaxbind.bind(**options)(pair)):
        with says(error, text):
            declare()


@pytest.mark.parametrize(
    "dtype, text",
    [("real", "pair: dtype='real'"), ((float, int), "pair: dtype= names 2 dtypes; the signature has"),
     ([], "pair: dtype= names 0 dtypes"), ({"a": 1}, "pair: dtype="), (3, "pair: dtype=3")],
)  # fmt: skip
def test_wrong_dtypes(dtype, text):
    with says(TypeError, text):
        jaxbind.bind(pair, "(),()->()", dtype=dtype)


def test_wrong_first_arguments():
    for value in (3, np.ones(2), object(), {"a": 1}):
        with says(
            TypeError, f"a {type(value).__name__} is not callable; the first argument is a f"
        ):
            jaxbind.bind(value, "()->()")
    with says(TypeError, "bind('()->()', '()->()'): a function is missing"):
        jaxbind.bind("()->()", "()->()")
    with says(TypeError, "pair: both a signature ((),()->()) and out= are given"):
        jaxbind.bind(pair, "(),()->()", out="infer")
    with says(TypeError, "it is bound already; bind pair.function"):
        jaxbind.bind(jaxbind.bind(pair, out="infer"), "()->()")
    with says(TypeError, "pair: the signature ()->() has 1 inputs, but the function has 2 pos"):
        jaxbind.bind("()->()")(pair)


@pytest.mark.parametrize(
    "out, text",
    [
        (3, "pair: out= gives 3, which has no shape and dtype; it must give jax.ShapeDtypeStruct"),
        (lambda a, b: (a, 3), "pair: out= gives 3, which has no shape and dtype"),
        (lambda a, b: a.shape, "pair: out= gives 3, which has no shape"),
        (lambda a, b: float, "pair: out= gives <class 'float'>, which has no shape"),
        (lambda a, b: jax.ShapeDtypeStruct((-1,), float), "pair: "),
        (lambda a, b: jax.ShapeDtypeStruct((), object), "pair: result 0 has dtype object"),
    ],
)
def test_wrong_declarations(out, text):
    f = jaxbind.bind(pair, out=out)
    for call in (f, jax.jit(f), lambda *a: jax.eval_shape(f, *a)):
        with pytest.raises((TypeError, ValueError), match=re.escape(text)):
            call(x, x)


def test_a_c_function_without_a_kernel():
    with says(TypeError, "a C function is bound as bind(jaxbind.Kernel(function, signature))"):
        jaxbind.bind(ctypes.CDLL(None).abs)
    with says(TypeError, "a C function is bound as bind(jaxbind.Kernel(function, signature))"):
        jaxbind.bind(scipy.special.cython_special.__pyx_capi__["j0"], "()->()")


def test_testing_is_an_attribute():
    assert jaxbind.testing.check.__module__.startswith("jaxbind.testing")
    with pytest.raises(AttributeError, match="module 'jaxbind' has no attribute 'tests'"):
        jaxbind.tests  # noqa: B018


VIEWS = {
    "whole": lambda x: x,
    "backwards": lambda x: x[::-1],
    "shifted": lambda x: np.concatenate([x[1:], x[:1]]),
    "sorted": np.sort,
    "rows of a list": lambda x: [x[i : i + 1].reshape(()) for i in range(len(x))],
}


@given(data=st.data())
def test_results_that_are_parts_of_aliased_operands(data):
    """Storing one result does not change what the others are copied from."""
    ways = data.draw(st.lists(st.sampled_from(sorted(VIEWS)), min_size=3, max_size=3))
    sources = data.draw(st.lists(st.integers(0, 2), min_size=3, max_size=3))
    places = data.draw(st.permutations(range(3)))

    def function(*operands):
        return tuple(VIEWS[way](operands[k]) for way, k in zip(ways, sources))

    signature = "(n),(n),(n)->(n),(n),(n)"
    f = jaxbind.bind(lambda a, b, c: function(a, b, c), signature, aliases=dict(zip("abc", places)))
    operands = np.random.default_rng(0).normal(size=(3, 4))
    want = function(*operands)
    got = jax.jit(lambda *args: f(*(x * 1.0 for x in args)))(*operands)
    for g, w in zip(got, want):
        np.testing.assert_array_equal(g, np.asarray(w, g.dtype))
