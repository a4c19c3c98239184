"""What crosses the boundary: every dtype bit by bit, ranks, precisions, floating-point modes."""

import re
import warnings

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

import jaxbind

# Every dtype that `jax.numpy` names, in whatever version.
ALL = {
    np.dtype(scalar.dtype).name: np.dtype(scalar.dtype)
    for scalar in vars(jnp).values()
    if isinstance(getattr(scalar, "dtype", None), np.dtype) and not hasattr(scalar, "shape")
}
CROSSING = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64"
    " complex64 complex128 float8_e5m2 float8_e4m3fn float8_e4m3b11fnuz float8_e5m2fnuz"
    " float8_e4m3fnuz float8_e4m3 float8_e3m4 float8_e8m0fnu"
).split()
INEXACT = [name for name in CROSSING if jnp.issubdtype(ALL[name], np.inexact)]
PACKED = [name for name in ALL if name not in CROSSING]

every_dtype = pytest.mark.parametrize("name", CROSSING)


def same(v):
    return v


STYLES = {
    "returned": jaxbind.bind(out=same)(lambda v: v),
    "copied": jaxbind.bind(out=same)(lambda v: v.copy()),
    "written": jaxbind.bind(out=same)(lambda v, *, out: np.copyto(out, v)),
    "reversed": jaxbind.bind(out=same)(lambda v: np.flip(np.flip(v).copy())),
    "elements": jaxbind.bind("()->()")(lambda v: v),
    "scalars": jaxbind.bind("()->()")(lambda v: v[()]),
}

ROUTES = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "vmap": lambda f: lambda v: jax.vmap(f)(v[None])[0],
    "jit of vmap": lambda f: jax.jit(lambda v: jax.vmap(f)(v[None])[0]),
    "loop": lambda f: jax.jit(lambda v: jax.lax.fori_loop(0, 2, lambda _, w: f(w), v)),
}

styles = pytest.mark.parametrize("style", STYLES)
routes = pytest.mark.parametrize("route", ROUTES)


def bits(array):
    array = np.ascontiguousarray(array)
    return array.reshape(-1).view("u1")


def patterns(dtype):
    """All bit patterns of up to 16 bits; of the larger ones every edge, and many more."""
    if dtype.kind == "b":
        return np.array([False, True])
    size = dtype.itemsize
    if size <= 2:
        return np.arange(256**size).astype(f"u{size}").view(dtype)
    rng = np.random.default_rng(size)
    if dtype.kind in "iu":
        edges = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, 0, 1], dtype)
        return np.concatenate([edges, rng.bytes(64 * size) and np.frombuffer(
            rng.bytes(64 * size), dtype)])  # fmt: skip
    part = np.dtype(f"f{size // (1 + (dtype.kind == 'c'))}")
    info = np.finfo(part)
    some = [0, 1, np.inf, np.nan, info.max, info.tiny, info.smallest_subnormal, info.eps]
    edges = np.array([s * v for v in some for s in (1, -1)], part)
    unsigned = f"u{part.itemsize}"
    quiet = np.array([np.nan], part).view(unsigned)[0]
    mantissa_top = np.array(1, unsigned) << np.array(info.nmant - 1, unsigned)
    payload = np.array([quiet | 5, (quiet ^ mantissa_top) | 5, quiet ^ mantissa_top | 1], unsigned)
    edges = np.concatenate([edges, payload.view(part), np.frombuffer(rng.bytes(512), part)])
    if part == dtype:
        return edges
    return np.stack([edges, edges[::-1]], -1).reshape(-1).view(dtype)


# Values -------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize(
    "style, route",
    [("returned", "eager"), ("copied", "jit"), ("written", "jit of vmap"), ("written", "loop")],
)
def test_every_value_keeps_its_bits(name, style, route, x64):
    array = patterns(ALL[name])
    got = np.asarray(ROUTES[route](STYLES[style])(jnp.asarray(array)))
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(bits(got), bits(array))


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "complex64", "bool"])
@styles
@routes
def test_every_way_keeps_the_bits(name, style, route, x64):
    array = patterns(ALL[name])
    array = array[:: max(array.size // 256, 1)]
    got = np.asarray(ROUTES[route](STYLES[style])(jnp.asarray(array)))
    np.testing.assert_array_equal(bits(got), bits(array))


@settings(max_examples=40)
@given(
    st.sampled_from(CROSSING),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3),
    st.sampled_from(list(STYLES)),
    st.sampled_from(list(ROUTES)),
    st.randoms(use_true_random=False),
)
def test_any_shape_keeps_its_bits(name, shape, style, route, random):
    with jax.enable_x64(True):
        array = np.resize(patterns(ALL[name]), shape)
        array = np.ascontiguousarray(array.transpose(random.sample(range(array.ndim), array.ndim)))
        got = np.asarray(ROUTES[route](STYLES[style])(jnp.asarray(array)))
    assert got.dtype == array.dtype and got.shape == array.shape
    np.testing.assert_array_equal(bits(got), bits(array))


@pytest.mark.parametrize("rank", [*range(0, 33, 4), 31, 33, 63, 64])
@pytest.mark.parametrize("style", ["returned", "written"])
def test_ranks(rank, style, x64):
    shape = [1] * rank
    shape[-2:] = [2, 3][: min(rank, 2)]
    array = np.random.default_rng(rank).standard_normal(shape)
    f = STYLES[style]
    np.testing.assert_array_equal(f(array), array)
    mapped = jax.vmap(f)(jnp.stack([array, -array]) if rank < 64 else jnp.stack([array] * 2))
    np.testing.assert_array_equal(mapped[0].reshape(-1), array.reshape(-1))


def test_more_dimensions_than_numpy_has():
    f = jaxbind.bind(out=same, vectorized=True, name="f")(lambda v: v)
    with pytest.raises(jax.errors.JaxRuntimeError, match="f got an array of 65 dimensions; NumPy"):
        jax.vmap(f)(jnp.ones((1,) * 65))


@every_dtype
def test_nothing(name, x64):
    shape = [(0,), (0, 3), (3, 0), (2, 0, 4)][ALL[name].num % 4]
    empty = jnp.zeros(shape, ALL[name])
    for style in STYLES:
        got = STYLES[style](empty)
        assert (got.shape, got.dtype) == (shape, empty.dtype)
    count = jaxbind.bind(lambda v: np.int32(v.size), out=jax.ShapeDtypeStruct((), np.int32))
    assert count(empty) == 0
    # something from nothing, of a dtype of its own
    fill = jaxbind.bind(
        lambda v: np.ones(2, v.dtype), out=lambda v: jax.ShapeDtypeStruct((2,), v.dtype)
    )
    np.testing.assert_array_equal(np.asarray(fill(empty)), np.ones(2, ALL[name]))


def test_all_dtypes_in_one_call(x64):
    arrays = {name: np.resize(patterns(ALL[name]), 5) for name in CROSSING}
    f = jaxbind.bind(out=same)(lambda d: {k: v.copy() for k, v in d.items()})
    for route in (f, jax.jit(f), lambda d: jax.tree.map(
            lambda v: v[0], jax.vmap(f)(jax.tree.map(lambda v: v[None], d)))):  # fmt: skip
        for name, got in route(arrays).items():
            assert got.dtype == ALL[name]
            np.testing.assert_array_equal(bits(np.asarray(got)), bits(arrays[name]))


def test_the_function_sees_the_dtype_itself(x64):
    for name in ("bool", "int64", "bfloat16", "complex128", "float8_e8m0fnu"):
        seen = []
        f = jaxbind.bind(out=same)(lambda v, *, out: seen.append((v, out)) or np.copyto(out, v))
        with pytest.raises(jax.errors.JaxRuntimeError, match="kept a view"):
            f(jnp.zeros(2, ALL[name]))
        for view in seen[0]:
            assert view.dtype == ALL[name] and type(view) is np.ndarray and view.dtype.isnative
            assert view.flags.c_contiguous and view.flags.aligned


@pytest.mark.parametrize("value", [True, 3, 2.5, 1 + 2j, np.float32(1.5), np.int8(-3)])
def test_python_and_numpy_scalars(value, both_x64):
    want = jnp.asarray(value)
    for f in (STYLES["returned"], STYLES["written"], STYLES["elements"]):
        for call in (f, jax.jit(f)):
            got = call(value)
            assert got.dtype == want.dtype and got.shape == () and got == want
            assert not got.weak_type


def test_python_numbers_take_the_precision_of_the_arrays(x64):
    seen = []

    def times(v, factor):
        seen.append((v.dtype, factor.dtype))
        return v * factor

    f = jaxbind.bind(times, "(n),()->(n)")
    v = np.ones(3, np.float32)
    for call in (f, jax.jit(lambda v, _: f(v, 2.0)), jax.vmap(f, (0, None))):
        assert call(v[None], 2.0).dtype == np.float32
    assert seen == [(np.float32, np.float32)] * 3


# Dtypes that are refused --------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKED)
def test_packed_dtypes_are_refused(name, x64):
    f = jaxbind.bind("(n),(n)->()", name="f")(lambda x, y: x @ y)
    traced = jax.ShapeDtypeStruct((3,), ALL[name])
    says = f"f: argument 1 (y) has dtype {name}, which cannot cross to a foreign function."
    with pytest.raises(TypeError, match=re.escape(says)) as caught:
        jax.eval_shape(f, np.ones(3), traced)
    assert "Accepted: bool, int8 to int64, uint8 to uint64, float16" in str(caught.value)
    assert "packed" in str(caught.value)
    for result in ({"out": traced}, {"out": lambda v: traced}):
        g = jaxbind.bind(lambda v: v, name="g", **result)
        with pytest.raises(TypeError, match=f"g: result 0 has dtype {name}, which cannot cross"):
            jax.eval_shape(g, 1.0)
    with pytest.raises(TypeError, match=f"g: .*has dtype {name}, which cannot cross"):
        jaxbind.bind("()->()", dtype=ALL[name], name="g")(lambda v: v)(1.0)
    with pytest.raises(TypeError, match=f"compute_dtype.*{name}"):
        jaxbind.bind("()->()", compute_dtype=ALL[name], name="g")(lambda v: v)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_are_refused(impl):
    f = jaxbind.bind(out=same, name="f")(lambda v: v)
    key = jax.random.key(0, impl=impl)
    for call in (f, jax.jit(f), jax.vmap(f)):
        with pytest.raises(TypeError, match=r"f: argument 0 \(v\) has dtype key<.*pass jax.random"):
            call(jax.random.split(key, 3))
    data = jax.random.key_data(key)
    np.testing.assert_array_equal(f(data), data)
    with pytest.raises(TypeError, match="g: result 0 has dtype key<"):
        jaxbind.bind(lambda v: v, out=jax.eval_shape(lambda: key), name="g")(1.0)


def test_float0_is_refused():
    f = jaxbind.bind(out=same, name="f")(lambda v: v)
    zeros = np.zeros(3, jax.dtypes.float0)
    for call in (f, jax.jit(f)):
        with pytest.raises(TypeError, match=r"f: argument 0 \(v\) has dtype float0.*leave it out"):
            call(zeros)


@pytest.mark.parametrize("array", [np.array("text"), np.array([None]), np.array(b"a"),
                                   np.array("2026-11-23", "M8[D]"), np.zeros(2, "i4,f8")],
                         ids=lambda a: str(a.dtype))  # fmt: skip
def test_what_jax_does_not_have_is_refused(array):
    f = jaxbind.bind(out=same, name="f")(lambda v: v)
    with pytest.raises(TypeError):
        f(array)
    with pytest.raises(TypeError, match="f: result 0 has dtype .* cannot cross"):
        jaxbind.bind(lambda v: v, out=lambda v: array, name="f")(1.0)


# Floating-point modes -----------------------------------------------------------------------------

tiny = {
    "float32": np.array([1e-39, -3e-42, 1e-45, 1.5e-38], "float32"),
    "float64": np.array([1e-310, 4e-308, -5e-324, 2.3e-308]),
}
OPERATIONS = {
    "multiply": lambda v: np.multiply(v, v.dtype.type(0.5)),
    "add": lambda v: np.add(v, v),
    "sqrt": lambda v: np.sqrt(np.abs(v)),
    "divide": lambda v: np.divide(v, v.dtype.type(3)),
    "nonzero": lambda v: (v != 0).astype(v.dtype),
    "python": lambda v: np.array([float(e) * 0.75 for e in v], v.dtype),
}


@pytest.mark.parametrize("name", tiny)
@pytest.mark.parametrize("operation", OPERATIONS)
@routes
def test_subnormal_arithmetic_is_ieee(name, operation, route, x64):
    function = OPERATIONS[operation]
    f = jaxbind.bind("(n)->(n)")(lambda v: function(v))
    got = np.asarray(ROUTES[route](f)(tiny[name]))
    want = function(tiny[name])
    if route == "loop":
        want = function(want)
    assert np.any(want != 0)
    np.testing.assert_array_equal(bits(got), bits(want))


def heavy(v):
    """Work that XLA does on threads of its own."""
    return jnp.sort(jnp.sin(jnp.arange(200_000.0)))[:1] * 0 + v


def test_subnormal_arithmetic_on_xlas_threads(x64):
    f = jaxbind.bind("(n)->(n)")(lambda v: np.float64(1e-310) * 0.5 + 0 * v)
    got = jax.jit(lambda v: f(heavy(v)))(jnp.zeros(2))
    np.testing.assert_array_equal(got, np.full(2, 5e-311))


def test_xla_has_its_own_mode_back(x64):
    """The same XLA operation before and after a call, in one program, gives the same."""
    f = jaxbind.bind("(n)->(n)")(lambda v: v * 0.5)
    fails = jaxbind.bind("(n)->(n)")(lambda v: 1 / 0)

    @jax.jit
    def program(v, w):
        before = v * w
        v, before = jax.lax.optimization_barrier((v, before))
        called = f(v)
        v, called = jax.lax.optimization_barrier((v, called))
        return before, called, v * w

    v, w = jnp.asarray(tiny["float64"]), jnp.full(4, 0.5)
    before, called, after = program(v, w)
    np.testing.assert_array_equal(before, jax.jit(jnp.multiply)(v, w))
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(called, tiny["float64"] * 0.5)
    with pytest.raises(jax.errors.JaxRuntimeError):
        jax.jit(fails)(v).block_until_ready()
    np.testing.assert_array_equal(program(v, w)[2], before)


def test_the_callers_mode_is_as_it_was():
    """A call runs on the calling thread: its environment must survive."""
    f = jaxbind.bind("(n)->(n)")(lambda v: v)
    fails = jaxbind.bind("(n)->(n)")(lambda v: 1 / 0)
    for _ in range(2):
        assert np.multiply(np.float64(1e-310), 0.5) == 5e-311
        f(np.ones(3)).block_until_ready()
        with pytest.raises(jax.errors.JaxRuntimeError):
            fails(np.ones(3)).block_until_ready()
    assert np.multiply(np.float64(1e-310), 0.5) == 5e-311


def test_numpys_error_state_inside_a_function(x64):
    """`np.errstate` of the caller does not leak in; one inside works."""

    @jaxbind.bind("()->()")
    def divided(v):
        with np.errstate(divide="raise"):
            return np.divide(1.0, v)

    with pytest.raises(jax.errors.JaxRuntimeError, match="FloatingPointError: divide by zero"):
        divided(0.0)
    assert divided(4.0) == 0.25


# Dtypes of results --------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(st.sampled_from(CROSSING), min_size=1, max_size=3), st.booleans(), st.data())
def test_the_default_is_the_promotion_of_the_differentiable(names, wide, data):
    with jax.enable_x64(wide):
        operands = [jnp.zeros(2, jax.dtypes.canonicalize_dtype(ALL[n])) for n in names]
        nondiff = data.draw(st.sets(st.integers(0, len(names) - 1)))
        counted = [
            v.dtype
            for k, v in enumerate(operands)
            if k not in nondiff and jnp.issubdtype(v.dtype, np.inexact)
        ] or [v.dtype for v in operands]
        parameters = ", ".join("abc"[: len(names)])
        function = eval(f"lambda {parameters}: None")
        f = jaxbind.bind(function, f"{','.join(['(n)'] * len(names))}->(n),()",
                         nondiff=tuple("abc"[k] for k in nondiff))  # fmt: skip
        try:
            want = jnp.result_type(*counted)
        except ValueError as refused:  # not public: jax._src.dtypes.TypePromotionError
            with pytest.raises(type(refused), match="promotion"):
                jax.eval_shape(f, *operands)
            return
        got = jax.eval_shape(f, *operands)
    assert [g.dtype for g in got] == [want] * 2
    assert [g.shape for g in got] == [(2,), ()]


@settings(max_examples=30)
@given(st.lists(st.sampled_from(CROSSING), min_size=2, max_size=2), st.booleans())
def test_given_dtypes(names, wide):
    with jax.enable_x64(wide):
        dtypes = tuple(ALL[n] for n in names)
        want = [jax.dtypes.canonicalize_dtype(d) for d in dtypes]

        def function(v):
            return tuple(np.ones((), d) for d in dtypes)

        for f in (
            jaxbind.bind(function, "()->(),()", dtype=dtypes),
            jaxbind.bind(function, "()->(),()", dtype=tuple(names)),
            jaxbind.bind(function, out=tuple(jax.ShapeDtypeStruct((), d) for d in dtypes)),
            jaxbind.bind(function, out="infer"),
        ):
            got = f(2.0)
            assert [g.dtype for g in got] == want
            assert all(np.asarray(g) == np.ones((), g.dtype) for g in got)
        one = jaxbind.bind(lambda v: (v.astype(dtypes[0]),) * 2, "()->(),()", dtype=dtypes[0])
        assert [g.dtype for g in one(1.0)] == want[:1] * 2


def test_a_result_of_the_wrong_dtype(both_x64):
    f = jaxbind.bind(lambda v: v.astype("int32"), "(n)->(n)", name="f")
    says = "f returned int32[3] for its result; its declared shape and dtype are float32[3]. Return"
    with pytest.raises(jax.errors.JaxRuntimeError, match=re.escape(says)) as caught:
        f(np.ones(3, "float32"))
    assert ".astype(...), declare the other dtype with dtype= or out=" in str(caught.value)
    g = jaxbind.bind(lambda v: v * 1j, "(n)->(n)", name="g")
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"Return its \.real part"):
        g(np.ones(3, "float32"))
    big_endian = jaxbind.bind(lambda v: v.astype(">f4"), "(n)->(n)")
    with pytest.raises(jax.errors.JaxRuntimeError, match="returned >f4.3. for its result"):
        big_endian(np.ones(3, "float32"))


@pytest.mark.parametrize("value", [2, 2.5, True, [1, 2.5], (1, 2), [[1.0], [2]]])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "complex64"])
def test_python_numbers_as_results(value, name):
    want = np.asarray(value, ALL[name])
    f = jaxbind.bind(lambda v: value, out=jax.ShapeDtypeStruct(want.shape, ALL[name]))
    got = f(0.0)
    assert got.dtype == ALL[name]
    np.testing.assert_array_equal(got, want)


def test_python_numbers_that_do_not_fit():
    f = jaxbind.bind(lambda v: 300, out=jax.ShapeDtypeStruct((), np.int8), name="f")
    with pytest.raises(jax.errors.JaxRuntimeError, match="f"):
        f(0.0)
    g = jaxbind.bind(lambda v: 2.5, out=jax.ShapeDtypeStruct((), np.int8), name="g")
    with pytest.raises(jax.errors.JaxRuntimeError, match="g returned 2.5 .float. for its result"):
        g(0.0)


# 32 and 64 bits -----------------------------------------------------------------------------------


def test_what_the_function_sees_follows_jax(both_x64):
    seen = []
    f = jaxbind.bind(lambda v: seen.append(v.dtype) or v, out=same)
    for name in ("float64", "complex128", "int64", "uint64", "float32", "float16"):
        f(np.ones(2, name))
    jax.jit(f)(1.0)
    canonical = jax.dtypes.canonicalize_dtype
    wanted = ["float64", "complex128", "int64", "uint64", "float32", "float16", "float64"]
    assert seen == [canonical(name) for name in wanted]
    assert f(np.ones(2)).dtype == canonical(float)


def test_one_binding_under_both_settings():
    seen = []
    f = jaxbind.bind(lambda v: seen.append(v.dtype) or v * 2, "(n)->(n)")
    compiled = jax.jit(f)
    for _ in range(2):
        for wide in (False, True):
            with jax.enable_x64(wide):
                for call in (f, compiled, jax.vmap(f)):
                    got = call(np.ones((1, 3)))
                    assert got.dtype == (np.float64 if wide else np.float32)
                    assert seen[-1] == got.dtype


def test_declared_64_bits_under_32_bit_jax():
    with jax.enable_x64(False):
        for f in (
            jaxbind.bind(lambda v: np.arange(3) * 1.5, "()->(3)", dtype=float),
            jaxbind.bind(lambda v: np.arange(3) * 1.5, out=jax.ShapeDtypeStruct((3,), float)),
            jaxbind.bind(lambda v: np.arange(3) * 1.5, out="infer"),
            jaxbind.bind(
                lambda v, out: np.multiply(np.arange(3), 1.5, out=out), "()->(3)", dtype=float
            ),
        ):
            got = jax.jit(f)(2.0)
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, [0, 1.5, 3])
        wide = jaxbind.bind(lambda v: np.int64(2**40 + 5), "()->()", dtype=np.int64)
        assert wide(1.0).dtype == np.int32


# compute_dtype ------------------------------------------------------------------------------------


def returned(function):
    return lambda v, w, k: function(v, w, k)


def written(function):
    def writes(v, w, k, *, out):
        assert not np.shares_memory(v, out)
        np.copyto(out, function(v, w, k), casting="no")

    return writes


@settings(max_examples=60)
@given(
    st.sampled_from(["float16", "bfloat16", "float32", "float64", "complex64", "int32", "bool"]),
    st.sampled_from(["float16", "float32", "float64", "complex64", "complex128", "uint8"]),
    st.sampled_from([returned, written]),
    st.sampled_from("CF"),
    st.booleans(),
    st.sampled_from(["plain", "jit", "vmap", "vmap one", "loop dimensions"]),
    st.booleans(),
)
def test_compute_dtype(first, second, style, order, vectorized, route, wide):
    """``float64``: the function sees nothing else, and results are rounded once."""
    seen = []

    def function(v, w, k):
        seen.append((v.dtype, w.dtype, k.dtype))
        core = v[(0,) * (v.ndim - 2)]
        assert core.flags.f_contiguous if order == "F" else v.flags.c_contiguous
        return v * w[..., None] + v / 3

    with jax.enable_x64(wide):
        f = jaxbind.bind(style(function), "(m,n),(m),()->(m,n)", compute_dtype="float64",
                         nondiff="k", order=order, vectorized=vectorized)  # fmt: skip
        rng = np.random.default_rng(0)
        first, second = (jax.dtypes.canonicalize_dtype(ALL[n]) for n in (first, second))
        v = jnp.asarray(rng.integers(0, 5, (2, 4, 3))).astype(first)
        w = jnp.asarray(rng.integers(0, 5, (2, 4))).astype(second)
        k = jnp.asarray(7, "int8")
        try:
            promoted = jnp.result_type(*[
                d for d in (v.dtype, w.dtype) if jnp.issubdtype(d, np.inexact)
            ] or [jax.dtypes.canonicalize_dtype(float)])  # fmt: skip
        except ValueError:  # not public: jax._src.dtypes.TypePromotionError
            return
        types = [np.complex128 if jnp.iscomplexobj(a) else np.float64 for a in (v, w)]
        v_wide, w_wide = (np.asarray(a).astype(t) for a, t in zip((v, w), types, strict=True))
        mapped_w = route not in ("vmap one", "plain", "jit")
        w_used = w_wide if mapped_w else w_wide[:1]
        want = v_wide * w_used[..., None] + v_wide / 3
        if np.iscomplexobj(want) and not jnp.issubdtype(promoted, np.complexfloating):
            return
        if route in ("plain", "jit"):
            call = jax.jit(f) if route == "jit" else f
            got, want = call(v[0], w[0], k), want[0]
        elif route == "vmap":
            got = jax.vmap(f, (0, 0, None))(v, w, k)
        elif route == "vmap one":
            got = jax.vmap(f, (0, None, None))(v, w[0], k)
        else:
            got = f(v, w, k)
    assert got.dtype == promoted
    np.testing.assert_array_equal(np.asarray(got), want.astype(promoted))
    assert set(seen) == {(*map(np.dtype, types), np.dtype("int8"))}


def test_compute_dtype_is_really_wide_under_32_bits():
    with jax.enable_x64(False):
        f = jaxbind.bind(lambda v: (v + 1e-12) - v, "(n)->(n)", compute_dtype=float)
        np.testing.assert_allclose(f(np.ones(3)), 1e-12, rtol=1e-3)
        assert f(np.ones(3)).dtype == np.float32
        narrow = jaxbind.bind(lambda v: ((v + 1e-12) - v).astype("f4"), "(n)->(n)")
        np.testing.assert_array_equal(narrow(np.ones(3)), 0)


@pytest.mark.parametrize("compute", ["float32", "float16", "complex128", "int64", "bfloat16"])
def test_other_compute_dtypes(compute, x64):
    seen = []
    f = jaxbind.bind(lambda v: seen.append(v.dtype) or v + v, "(n)->(n)", compute_dtype=compute)
    v = np.arange(4.0)
    got = f(v)
    assert got.dtype == (np.complex128 if compute == "complex128" else np.float64)
    np.testing.assert_array_equal(got, 2 * v)
    assert seen == [ALL[compute]]


@pytest.mark.parametrize("operand", ["int32", "uint8", "int16"])
@pytest.mark.parametrize("declared", [None, "int32"])
def test_functions_that_know_one_integer_type(operand, declared, both_x64):
    """As for floating-point types: the results are converted back, also in 32 bits."""
    seen = []
    f = jaxbind.bind(
        lambda i: seen.append(i.dtype) or i * 2, "()->()", dtype=declared, compute_dtype=np.int64
    )
    got = f(jnp.asarray(3, operand))
    assert got == 6 and got.dtype == (declared or jnp.asarray(3, operand).dtype)
    assert seen == [np.int64]
    shaped = jaxbind.bind(lambda i: i * 2, out=lambda i: i, compute_dtype=np.int64)
    assert shaped(jnp.asarray(3, operand)) == 6


def test_integer_results_are_left_alone(both_x64):
    f = jaxbind.bind("(n)->(),()", dtype=(np.float32, np.int32), compute_dtype=float)(
        lambda v: (v.max(), np.int32(v.argmax()))
    )
    top, where = f(np.array([1, 5, 2], "float32"))
    assert (top.dtype, where.dtype) == (np.float32, np.int32) and (top, where) == (5, 1)


def test_conversion_does_not_warn(both_x64):
    """What does not fit becomes infinite, as in ``astype`` of JAX, without a word."""
    f = jaxbind.bind(lambda v: v * 1e200, "(n)->(n)", compute_dtype=float)
    v = np.array([1e38, np.nan, np.inf, 1e-300, 0], "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = np.asarray(f(v))
    np.testing.assert_array_equal(got, [np.inf, np.nan, np.inf, 0, 0])
    narrow = jaxbind.bind(lambda v: v, "(n)->(n)", compute_dtype="float16")
    np.testing.assert_array_equal(narrow(v), [np.inf, np.nan, np.inf, 0, 0])


def test_compute_dtype_of_ufuncs(both_x64):
    import scipy.special

    f = jaxbind.bind(scipy.special.erfcx, compute_dtype=float)
    v = np.linspace(-1, 3, 7).astype("float32")
    got = f(v)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, scipy.special.erfcx(v.astype(float)).astype("float32"))


@example("float64", 0, "C")
@settings(max_examples=20)
@given(st.sampled_from(["float64", "complex128"]), st.integers(0, 3), st.sampled_from("CF"))
def test_no_copy_where_nothing_is_converted(compute, batch, order):
    with jax.enable_x64(True):
        owners = []
        f = jaxbind.bind(lambda v: owners.append(v.flags.owndata) or v * 1, "(n)->(n)",
                         compute_dtype=compute, order=order)  # fmt: skip
        v = np.ones((batch, 3)).astype(compute)
        np.testing.assert_array_equal(f(v), v)
        assert owners == [False] * batch
