"""What crosses the boundary: dtypes, ranks, layouts, static parameters, loop dimensions."""

import collections
import dataclasses
import enum
import functools
import operator

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings

import jaxbind

NAMES = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64"
    " complex64 complex128 float8_e5m2 float8_e4m3fn float8_e4m3b11fnuz float8_e5m2fnuz"
    " float8_e4m3fnuz float8_e4m3 float8_e3m4 float8_e8m0fnu"
).split()


@jaxbind.bind(out=lambda v: v)
def copied(v):
    return v.copy()


@jaxbind.bind(out=lambda v: v)
def written(v, *, out):
    np.copyto(out, v)


def bits(array):
    array = np.ascontiguousarray(array)
    return array.view(f"u{array.itemsize}" if array.itemsize <= 8 else "u8")


# Dtypes and ranks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", [copied, written], ids=["copied", "written"])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(data=st.data())
def test_every_dtype_keeps_its_bits(identity, name, data):
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    raw = data.draw(st.binary(min_size=64, max_size=64))
    pattern = np.frombuffer(raw, np.uint8)
    if name == "bool":
        pattern = pattern % 2
    count = int(np.prod(shape)) * dtype.itemsize
    array = np.resize(pattern, count).view(dtype).reshape(shape)
    with jax.enable_x64(True):
        operand = jnp.asarray(array)
        for got in (
            identity(operand),
            jax.jit(identity)(operand),
            jax.vmap(identity)(operand[None]),
        ):
            assert got.dtype == dtype
            # JAX itself may quieten a signalling NaN on its way in
            np.testing.assert_array_equal(
                bits(np.asarray(got).reshape(shape)), bits(np.asarray(operand))
            )


@pytest.mark.parametrize("rank", [0, 1, 2, 7, 31, 64])
def test_ranks(rank, x64):
    operand = np.random.default_rng(rank).standard_normal(
        (1,) * max(rank - 3, 0) + (2,) * min(rank, 3)
    )
    np.testing.assert_array_equal(written(operand), operand)
    np.testing.assert_array_equal(copied(operand), operand)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 4)])
def test_empty_arrays(shape, x64):
    assert written(np.zeros(shape)).shape == shape
    assert jax.vmap(copied)(np.zeros((0, *shape))).shape == (0, *shape)
    total = jaxbind.bind(lambda v: np.sum(v), out=jax.ShapeDtypeStruct((), float))
    assert total(np.zeros(shape)) == 0


def test_subnormals_are_kept(x64):
    tiny = np.array([1e-310, 4e-308, -5e-324])
    halved = jaxbind.bind(lambda v: v * 0.5, "(n)->(n)")
    np.testing.assert_array_equal(jax.jit(halved)(tiny), tiny * 0.5)
    assert np.all(np.asarray(jax.jit(halved)(tiny))[:2] != 0)
    # and XLA has its own mode back afterwards: the same program as without the call
    both = jax.jit(lambda v: (halved(v), v * 0.5))
    np.testing.assert_array_equal(both(tiny)[1], jax.jit(lambda v: v * 0.5)(tiny))


@pytest.mark.parametrize(
    "names", [("float32", "float64"), ("float16", "complex64"), ("int32", "float32")]
)
def test_default_dtype_is_the_promotion_of_the_differentiable(names, both_x64):
    a, b = (jnp.ones(3, jax.dtypes.canonicalize_dtype(n)) for n in names)
    inexact = [v for v in (a, b) if jnp.issubdtype(v.dtype, np.inexact)]
    want = jnp.result_type(*inexact)
    added = jaxbind.bind(lambda a, b: (a + b).astype(want), "(n),(n)->(n)")
    assert added(a, b).dtype == want


def test_python_numbers_take_the_precision_of_the_arrays(x64):
    seen = []

    def scaled(v, factor):
        seen.append((v.dtype, factor.dtype))
        return v * factor

    f = jaxbind.bind(scaled, "(n),()->(n)")
    assert f(np.ones(3, "float32"), 2.0).dtype == np.float32
    assert jax.jit(lambda v: f(v, 2.0))(np.ones(3, "float32")).dtype == np.float32
    assert seen == [(np.float32, np.float32)] * 2


def test_declared_64_bits_under_32_bit_jax():
    with jax.enable_x64(False):
        for declared in (
            jaxbind.bind(lambda v: np.linspace(0, 1, 3) * v, "()->(3)", dtype=float),
            jaxbind.bind(lambda v: np.linspace(0, 1, 3) * v, out=jax.ShapeDtypeStruct((3,), float)),
            jaxbind.bind(lambda v: np.linspace(0, 1, 3) * v, out="infer"),
        ):
            got = declared(2.0)
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, [0, 1, 2])


# compute_dtype ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "complex64", "int32", "bool"])
@pytest.mark.parametrize("style", ["return", "out"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_compute_dtype(name, style, order, both_x64):
    seen = []

    def plain(v, k):
        seen.append((v.dtype, k.dtype, v.flags.f_contiguous if order == "F" else True))
        return v * v

    def in_place(v, k, *, out):
        seen.append((v.dtype, k.dtype, out.flags.f_contiguous if order == "F" else True))
        assert out.dtype == v.dtype
        np.multiply(v, v, out=out)

    function = plain if style == "return" else in_place
    f = jaxbind.bind(function, "(m,n),()->(m,n)", compute_dtype="float64", nondiff="k", order=order)
    v = jnp.asarray(np.arange(12).reshape(3, 4) % 3).astype(name)
    computed = np.complex128 if name == "complex64" else np.float64
    for call in (f, jax.jit(f), lambda v, k: jax.vmap(f, (0, None))(v[None], k)[0]):
        got = call(v, np.int16(2))
        want = np.asarray(v).astype(computed) ** 2
        np.testing.assert_array_equal(np.asarray(got).astype(computed), want)
        if jnp.issubdtype(v.dtype, np.inexact):
            assert got.dtype == v.dtype
    assert set(seen) == {(np.dtype(computed), np.dtype(np.int16), True)}


def test_compute_dtype_in_rules():
    seen = []
    f = jaxbind.bind(lambda v: np.sin(v), "()->()", compute_dtype=float)

    @f.def_vjp
    def _(primals, cotangent):
        seen.append((primals[0].dtype, cotangent.dtype))
        return np.cos(primals[0]) * cotangent

    with jax.enable_x64(False):
        got = jax.grad(f)(jnp.float32(0.3))
    assert got.dtype == np.float32 and seen == [(np.float64, np.float64)]
    np.testing.assert_allclose(got, np.cos(0.3), rtol=1e-6)


# Memory order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("core", [(), (3,), (3, 4), (2, 3, 4)])
def test_fortran_order(core, vectorized, x64):
    flags = []

    def function(v, *, out):
        views = [v, out] if not vectorized or v.ndim == len(core) else [v[0], out[0]]
        flags.append(all(a.flags.f_contiguous for a in views))
        out[...] = v * 2

    f = jaxbind.bind(out=lambda v: v, order="F", vectorized=vectorized)(function)
    v = np.random.default_rng(0).standard_normal((5, *core))
    np.testing.assert_array_equal(f(v[0]), 2 * v[0])
    np.testing.assert_array_equal(jax.jit(jax.vmap(f))(v), 2 * v)
    np.testing.assert_array_equal(
        jax.vmap(f, in_axes=-1, out_axes=-1)(np.moveaxis(v, 0, -1)), np.moveaxis(2 * v, 0, -1)
    )
    assert all(flags)


def test_no_copy_between_fortran_functions(x64):
    f = jaxbind.bind(out=lambda v: v, order="F")(lambda v, *, out: np.copyto(out, v))
    text = jax.jit(lambda v: f(f(f(v)))).lower(np.ones((8, 9))).compile().as_text()
    assert text.count("custom-call(") == 3
    assert text.count(" copy(") + text.count(" transpose(") <= 2  # on the way in and out


# Static parameters --------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Settings:
    level: int = 1


VALUES = [
    1, 1.0, True, 1 + 0j, "1", b"1", None, (1,), (1.0,), (True,), 0.0, -0.0, float("nan"),
    float("inf"), np.float64(1), np.int32(1), np.dtype("f4"), Colour.RED, Settings(), Settings(2),
    frozenset({1}), len, np.sin, (1, ("a", (None, 2.5))), "quote ' \" \\ ü", -1, 10**30, range(3),
]  # fmt: skip


def test_static_parameters_arrive_as_they_were_given(x64):
    given_values = []

    @jaxbind.bind("()->()")
    def f(v, *, value, default="d"):
        given_values.append((value, default))
        return v * len(given_values)

    for compiled in (False, True):  # in one program, too
        given_values.clear()
        if compiled:
            jax.jit(lambda v: [f(v, value=value) for value in VALUES])(1.0)
        else:
            for value in VALUES:
                f(1.0, value=value)
        assert len(given_values) == len(VALUES)
        found = sorted((repr(type(v)), repr(v)) for v, _ in given_values)
        assert found == sorted((repr(type(v)), repr(v)) for v in VALUES)
        assert {default for _, default in given_values} == {"d"}


def test_equal_static_parameters_compile_once(x64):
    traced = []

    def shape(v, *, n):
        traced.append(n)
        return jax.ShapeDtypeStruct((n,), v.dtype)

    f = jaxbind.bind(out=shape)(lambda v, *, n: np.full(n, v))
    for _ in range(3):
        assert f(1.0, n=2).shape == (2,) and f(1.0, n=3).shape == (3,)
    assert traced == [2, 3]


def test_callables_of_all_kinds_are_not_confused(x64):
    class Scaler:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, v):
            return self.factor * v

        def method(self, v):
            return self.factor * v

    made = [jaxbind.bind(Scaler(k), "()->()") for k in range(3)]
    made += [jaxbind.bind(Scaler(k).method, "()->()") for k in range(3)]
    made += [
        jaxbind.bind(functools.partial(lambda k, v: k * v, float(k)), "()->()") for k in range(3)
    ]

    def closure(factor):
        return lambda v: factor * v

    made += [jaxbind.bind(closure(float(k)), "()->()") for k in range(3)]
    together = jax.jit(lambda v: [f(v) for f in made])
    assert [float(r) for r in together(2.0)] == [0.0, 2.0, 4.0] * 4
    assert jaxbind.bind(operator.mul, "(),()->()")(2.0, 3.0) == 6.0


def test_bind_in_all_three_ways(x64):
    @jaxbind.bind("(n)->()")
    def first(v):
        """Documented."""
        return v.sum()

    @jaxbind.bind(out=jax.ShapeDtypeStruct((), float))
    def second(v):
        return v.sum()

    third = jaxbind.bind(lambda v: v.sum(), "(n)->()")
    assert first.__doc__ == "Documented." and first.__name__ == "first"
    for f in (first, second, third, jaxbind.bind(np.sum, out="infer")):
        assert f(np.ones(3)) == 3.0


def test_defaults_and_operands_by_name(x64):
    @jaxbind.bind("(),(),()->()")
    def f(a, b, c=10.0):
        return a - b * c

    assert f(1.0, 2.0) == -19.0 and f(1.0, 2.0, 3.0) == -5.0
    assert f(b=2.0, a=1.0, c=1.0) == -1.0 and f(1.0, c=1.0, b=3.0) == -2.0
    assert jax.jit(f)(1.0, b=2.0) == -19.0
    # beyond the signature, defaults are left to the function
    np.testing.assert_allclose(jaxbind.bind(np.fft.fft, "(n)->(n)")(np.ones(3) + 0j), [3, 0, 0])
    nothing = jaxbind.bind(out=jax.ShapeDtypeStruct((2,), float))(lambda: np.ones(2))
    np.testing.assert_array_equal(jax.jit(nothing)(), [1, 1])


UFUNCS = [
    (scipy.special.jv, 2),
    (np.hypot, 2),
    (scipy.special.sici, 1),
    (np.divmod, 2),
    (scipy.special.erfcx, 1),
]


@pytest.mark.parametrize("ufunc, nin", UFUNCS)
def test_ufuncs(ufunc, nin, both_x64):
    rng = np.random.default_rng(0)
    args = [rng.uniform(0.5, 3, (4, 1)), rng.uniform(0.5, 3, 5)][:nin]
    got = jax.jit(jaxbind.bind(ufunc))(*args)
    want = ufunc(*(np.asarray(jnp.asarray(a)) for a in args))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_generalised_ufuncs(x64):
    matmul = jaxbind.bind(np.matmul)  # (n?,k),(k,m?)->(n?,m?)
    rng = np.random.default_rng(0)
    for shapes in [((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,)),
                   ((5, 2, 3), (3, 4)), ((5, 1, 2, 3), (6, 3, 4))]:  # fmt: skip
        a, b = (rng.standard_normal(s) for s in shapes)
        np.testing.assert_allclose(matmul(a, b), a @ b, rtol=1e-12)


# Loop dimensions ----------------------------------------------------------------------------------

SIGNATURES = {
    "(n),(n)->()": lambda a, b: np.sum(a * b),
    "(m,n),(n)->(m)": lambda a, b: a @ b,
    "(),()->()": lambda a, b: a - 2 * b,
    "(n),()->(n),()": lambda a, b: (a * b, np.sum(a) + b),
    "(m),(n)->(m,n)": lambda a, b: np.outer(a, b),
    "(3),(n)->(n)": lambda a, b: b * a[0] + a[2],
}


@pytest.mark.parametrize("signature", SIGNATURES)
@settings(max_examples=15)
@given(data=st.data())
def test_broadcasting_is_that_of_numpy(signature, data):
    function = SIGNATURES[signature]
    inputs = signature.partition("->")[0] + "->()"
    shapes = data.draw(hnp.mutually_broadcastable_shapes(signature=inputs, max_dims=3, max_side=3))
    rng = np.random.default_rng(0)
    args = [rng.integers(-4, 5, s).astype(float) for s in shapes.input_shapes]
    calls = []

    def counted(a, b):
        calls.append((a.shape, b.shape))
        return function(a, b)

    with jax.enable_x64(True):
        bound = jaxbind.bind(counted, signature)
        got = jax.jit(bound)(*args)
        want = np.vectorize(function, signature=signature, otypes="dd"[: signature.count("(") - 2])(
            *args
        )
        jax.tree.map(np.testing.assert_array_equal, got, want)
        text = jax.jit(bound).lower(*args).as_text()
    assert text.count("stablehlo.custom_call") == 1 and "while" not in text
    assert len(set(calls)) == 1


def test_vectorized_functions_are_called_once(x64):
    calls = []

    @jaxbind.bind("(n),()->(n)", vectorized=True)
    def f(v, c):
        calls.append((v.shape, c.shape))
        return v * c[..., None]

    v, c = np.ones((4, 3)), np.arange(5.0)[:, None]
    np.testing.assert_array_equal(f(v, c), v * c[..., None])
    nested = jax.vmap(jax.vmap(f, (0, None)), (None, 0))(v, np.arange(5.0))
    np.testing.assert_array_equal(nested, v * c[..., None])
    assert calls == [((1, 4, 3), (5, 1))] * 2


def test_one_foreign_call_for_nested_maps_and_no_loop(x64):
    f = jaxbind.bind(lambda v: v.sum(), "(n)->()")
    mapped = jax.jit(jax.vmap(jax.vmap(f, in_axes=1), in_axes=2))
    lowered = mapped.lower(np.ones((3, 4, 5))).as_text()
    assert lowered.count("stablehlo.custom_call") == 1 and "while" not in lowered


def test_repeated_eager_maps_do_not_recompile(x64):
    f = jaxbind.bind(lambda v: v.sum(), "(n)->()")
    jax.vmap(f)(np.ones((3, 4)))
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "compile" in name else None
    )
    for k in range(5):
        np.testing.assert_array_equal(jax.vmap(f)(np.full((3, 4), float(k))), 4.0 * k)
        np.testing.assert_array_equal(f(np.full((3, 4), float(k))), 4.0 * k)
    assert compilations.count("/jax/core/compile/backend_compile_duration") <= 1  # f itself


def test_sharded_operands(x64):
    f = jaxbind.bind(lambda v: np.sort(v), "(n)->(n)")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("i",))
    v = np.random.default_rng(0).standard_normal((8, 5))
    split = jax.device_put(v, jax.NamedSharding(mesh, jax.sharding.PartitionSpec("i")))
    np.testing.assert_array_equal(jax.jit(f)(split), np.sort(v))


def test_a_function_may_reshape_its_own_views(x64):
    """Views are kept between calls, so what a function sets on one must not last."""
    import warnings

    shapes = []

    def reshaping(v, *, out):
        shapes.append((v.shape, out.shape, out.flags.writeable))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy 2.5
            out[...] = 2 * v
            v.shape = (*v.shape, 1)
            out.shape = (1, *out.shape)
        out.flags.writeable = False

    f = jaxbind.bind(out=lambda v: v)(reshaping)
    for _ in range(2):
        np.testing.assert_array_equal(f(np.arange(3.0)), [0, 2, 4])
        np.testing.assert_array_equal(jax.vmap(f)(np.ones((2, 3))), np.full((2, 3), 2.0))
    assert set(shapes) == {((3,), (3,), True)}


@dataclasses.dataclass(frozen=True)
class Level:
    value: object


Pair = collections.namedtuple("Pair", "a b")

LOOKALIKES = [
    (np.float64(0.0), np.float64(-0.0)),
    (Level(1), Level(1.0), Level(True)),
    (Level(0.0), Level(-0.0)),
    (Pair(1, 2), Pair(1.0, 2), (1, 2)),
    (range(0, 3, 2), range(0, 4, 2)),
    (np.float32(1), np.float64(1), np.int64(1)),
]


@pytest.mark.parametrize("values", LOOKALIKES, ids=repr)
def test_static_parameters_that_are_equal_but_not_the_same(values, x64):
    seen = []

    def function(v, *, value):
        seen.append(repr(value))
        return v

    f = jaxbind.bind("()->()")(function)
    jax.jit(lambda v: [f(v + k, value=value) for k, value in enumerate(values)])(1.0)
    assert sorted(seen) == sorted(map(repr, values))


def test_static_parameters_without_a_text(x64):
    class Shy:
        def __repr__(self):
            raise RuntimeError("no")

    f = jaxbind.bind("()->()")(lambda v, *, value: v)
    for value in (10**5000, Shy(), np.float64("nan")):
        assert f(2.0, value=value) == 2.0


def test_a_function_that_writes_a_scalar(x64):
    assert jaxbind.bind(np.dot, "(n),(n)->()")(np.ones(3), np.ones(3)) == 3.0


def test_optional_dimensions_with_loops(x64):
    matmul = jaxbind.bind(np.matmul)
    a, v = np.random.default_rng(0).standard_normal((5, 2, 3)), np.arange(3.0)
    np.testing.assert_allclose(matmul(a, v), a @ v)
    np.testing.assert_allclose(jax.vmap(matmul, (0, None))(a, v), a @ v)
    np.testing.assert_allclose(jax.vmap(matmul)(a[:, 0], a[:, 1]), np.sum(a[:, 0] * a[:, 1], -1))


def test_ufuncs_take_python_numbers_weakly(x64):
    for name in ("int8", "float16", "float32"):
        v = np.ones(3, name)
        assert jaxbind.bind(np.multiply)(v, 2).dtype == np.multiply(v, 2).dtype
