"""Ufuncs and gufuncs: their own loops, called without Python, give what NumPy gives."""

import functools
import importlib
import subprocess
import sys
import warnings

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis.extra import numpy as hnp

import jaxbind
from jaxbind import testing

umath = np.linalg._umath_linalg
SPECIAL = [u for u in vars(scipy.special).values() if isinstance(u, np.ufunc)]
#: iterate for ever on operands that are not finite or large, in SciPy itself
DELICATE = ("hyp", "eval_", "mathieu", "pro_", "obl_", "nctd", "ncf", "chnd", "pb", "_")


def values(dtype, count, rng, delicate):
    """Numbers of all kinds: integers, near and far from 0, and what is special."""
    if dtype.kind == "b":
        return rng.integers(0, 2, count).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 7, count).astype(dtype)
    some = [rng.uniform(0, 1, count), rng.normal(size=count) * 3, [0, 1, -1, 0.5, -2, 1e-5]]
    if not delicate:
        some += [rng.uniform(0, 30, count), [1e-310, 1e-45, np.inf, -np.inf, np.nan, 1e10]]
    x = rng.permutation(np.concatenate(some))[:count]
    if dtype.kind == "c":
        x = x + 1j * rng.permutation(np.concatenate(some))[:count]
    return x.astype(dtype)


def same(got, want):
    """The same bits, but for what NaN is made of."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype and got.shape == want.shape
    both_nan = (got != got) & (want != want)
    np.testing.assert_array_equal(np.where(both_nan, 0, got), np.where(both_nan, 0, want))
    if got.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(got) | both_nan, np.signbit(want) | both_nan)


def loops(ufunc):
    """The dtypes of the operands of its loops that JAX has."""
    for text in ufunc.types:
        if not set("gGOmM") & set(text):
            yield tuple(np.dtype(c) for c in text.partition("->")[0])


@pytest.mark.parametrize("ufunc", SPECIAL, ids=lambda u: u.__name__)
def test_every_loop_of_scipy_special(ufunc, x64):
    """Bit for bit, subnormal numbers included."""
    f = jaxbind.bind(ufunc)
    delicate = ufunc.__name__.startswith(DELICATE)
    rng = np.random.default_rng(0)
    operands, wants = [], []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for dtypes in loops(ufunc):
            args = [values(d, 40, rng, delicate) for d in dtypes]
            if ufunc.signature:
                args = [np.broadcast_to(x, (40,)) for x in args]
            operands.append(args)
            wants.append(ufunc(*args))
        assert operands
        gots = jax.jit(lambda rows: [f(*row) for row in rows])(operands)
        jax.block_until_ready(gots)
    for got, want in zip(gots, wants, strict=True):
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            same(g, w)


@given(
    shapes=hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, max_side=4, min_side=0),
    seed=st.integers(0, 9),
)
def test_broadcasting(shapes, seed):
    """As NumPy broadcasts, whatever the strides."""
    rng = np.random.default_rng(seed)
    operands = [rng.uniform(0.5, 5, shape) for shape in shapes.input_shapes]
    with jax.enable_x64(True):
        f = jaxbind.bind(scipy.special.betainc)
        same(f(*operands), scipy.special.betainc(*operands))


@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=3, max_side=4),
    axes=st.tuples(st.sampled_from([None, 0, -1]), st.sampled_from([None, 0, -1])),
    seed=st.integers(0, 9),
)
def test_vmap_is_one_call(shape, axes, seed):
    if axes == (None, None):
        return
    rng = np.random.default_rng(seed)
    size = 3
    x, y = (
        rng.uniform(0.5, 5, shape if a is None else np.insert(shape, a % (len(shape) + 1), size))
        for a in axes
    )
    with jax.enable_x64(True):
        f = jax.jit(jax.vmap(jaxbind.bind(scipy.special.jv), in_axes=axes))
        rows = [
            scipy.special.jv(
                *(v if a is None else np.take(v, i, a) for v, a in zip((x, y), axes, strict=True))
            )
            for i in range(size)
        ]
        same(f(x, y), np.stack(rows))
        assert f.lower(x, y).as_text().count("custom_call") == 1


DTYPES = ["bool", "int8", "int32", "int64", "uint16", "float16", "float32", "float64", "complex64"]


@pytest.mark.parametrize("ufunc", [np.add, np.arctan2, np.exp, np.floor_divide, np.frexp, np.abs])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_chooses_the_loop(ufunc, dtype, x64):
    x = [np.array([1, 0, 3], dtype), np.array([2, 2, 1], dtype)][: ufunc.nin]
    try:
        want = ufunc(*x)
    except TypeError:
        with pytest.raises(TypeError, match="no loop of this ufunc"):
            jaxbind.bind(ufunc)(*x)
        return
    got = jax.jit(jaxbind.bind(ufunc))(*x)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        same(g, w)


@pytest.mark.parametrize("dtype", ["int32", "float16", "bfloat16", "float32", "uint8", "bool"])
def test_operands_are_converted_in_32_bits(dtype):
    """Loops over doubles serve where JAX has no doubles."""
    x = jnp.asarray([0, 1, 3, 1, 0], dtype)
    wide = np.asarray(x).astype(np.float64)
    f = jaxbind.bind(scipy.special.stdtr)  # df, t: float and double
    got = f(x + jnp.asarray(1, x.dtype), x)
    want = scipy.special.stdtr(wide + 1 if dtype != "bool" else wide >= 0, wide)
    assert got.dtype in (jnp.float32, x.dtype)
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=1e-2 if "16" in dtype else 1e-6)
    n = jaxbind.bind(scipy.special.eval_legendre)(3, jnp.float32(0.5))
    np.testing.assert_allclose(n, scipy.special.eval_legendre(3, 0.5), rtol=1e-6)


@given(hnp.arrays(np.float16, st.integers(0, 20), elements=st.floats(width=16)))
def test_half_precision_is_converted_as_numpy_does(x):
    doubled = jaxbind.bind(np.frompyfunc(lambda v: v, 1, 1))
    f = jaxbind.bind(scipy.special.expit, compute_dtype=np.float32)
    with np.errstate(all="ignore"):
        same(f(x), scipy.special.expit(x.astype(np.float32)).astype(np.float16))
        same(doubled(x), x)


@given(
    a=hnp.arrays(
        float, st.tuples(st.integers(0, 3), st.just(3), st.just(3)), elements=st.floats(-2, 2)
    ),
    b=hnp.arrays(float, (3, 2), elements=st.floats(-2, 2)),
)
def test_gufuncs(a, b):
    a = a + 9 * np.eye(3)
    with jax.enable_x64(True):
        same(jaxbind.bind(umath.det)(a), np.linalg.det(a))
        same(jaxbind.bind(umath.solve)(a, b), np.linalg.solve(a, b))
        same(jaxbind.bind(np.matmul)(a, b), a @ b)
        same(jaxbind.bind(np.vecdot)(a, a[..., :1, :]), np.vecdot(a, a[..., :1, :]))
        turned = jax.vmap(jaxbind.bind(umath.inv), in_axes=1, out_axes=1)(np.swapaxes(a, 0, 1))
        np.testing.assert_array_equal(turned, np.swapaxes(np.linalg.inv(a), 0, 1))


@pytest.mark.parametrize("name", ["svd", "svd_f", "svd_s", "lstsq"])
@given(shape=hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=4), data=st.data())
def test_gufuncs_that_compute_the_sizes_of_their_results(name, shape, data):
    """Core dimensions that stand only in an output: ``(m,n)->(p)``."""
    ufunc = getattr(umath, name, None)
    if ufunc is None or "(p)" not in ufunc.signature:
        pytest.skip("this NumPy has others")
    if name == "lstsq":
        shape = (*shape[:-2], 3, 2)
    a = data.draw(hnp.arrays(float, shape, elements=st.floats(-2, 2)))
    operands = (a, np.ones((*shape[:-1], 2)), 1e-12) if name == "lstsq" else (a,)
    with jax.enable_x64(True):
        bound = jaxbind.bind(ufunc)
        kept = jnp.array(a)
        got = jax.jit(bound)(kept, *operands[1:])
        jax.tree.map(same, got, ufunc(*operands))
        same(kept, a)
        if len(shape) == 3 and name != "lstsq":
            jax.tree.map(same, jax.vmap(bound)(a), ufunc(a))


def test_the_sizes_of_results_must_be_known_to_be_computed(x64):
    f = jaxbind.bind(umath.svd_s)
    m, n = jax.export.symbolic_shape("m, n")
    with pytest.raises(TypeError, match=r"svd_s: NumPy computes the size of core dimension"):
        jax.eval_shape(f, jax.ShapeDtypeStruct((m, n), float))


def test_a_ufunc_that_writes_into_its_operand():
    with pytest.raises(TypeError, match=r"writes into its operand.* np.linalg.qr\(a, mode='raw'\)"):
        jaxbind.bind(umath.qr_r_raw)


# Threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 1000, 40_001])
def test_threads_change_nothing(threads, size, x64):
    rng = np.random.default_rng(size)
    x, y = rng.uniform(0, 20, (2, size))
    f = jax.jit(jaxbind.bind(scipy.special.jv, threads=threads))
    same(f(x, y), scipy.special.jv(x, y))
    same(f(x[:, None], y[:3]), scipy.special.jv(x[:, None], y[:3]))


def test_threads_of_matrices(x64):
    a = np.random.default_rng(0).normal(size=(2000, 6, 6))
    same(jax.jit(jaxbind.bind(umath.inv, threads=0))(a), np.linalg.inv(a))


def test_threads_must_be_a_number():
    for threads in (-1, True, "all", 1.5):
        with pytest.raises(ValueError, match=r"jv: threads=.* it is a number, 0 for as many"):
            jaxbind.bind(scipy.special.jv, threads=threads)


# What loops do besides ----------------------------------------------------------------------------


def test_loops_are_called_without_python(x64):
    def compiled(f, *operands):
        return "'ufunc': " in jax.jit(f).lower(*operands).as_text()  # its loop is known

    x = np.ones(3)
    assert compiled(jaxbind.bind(scipy.special.jv), x, x)
    assert compiled(jaxbind.bind(np.sqrt), x)
    assert not compiled(jaxbind.bind(np.frompyfunc(lambda x: x, 1, 1)), x)


def test_functions_over_objects_are_called_with_python(x64):
    f = jaxbind.bind(np.frompyfunc(lambda x, y: (x + y, x > y), 2, 2), dtype=(float, bool))
    x, y = np.arange(3.0), np.ones(3)
    total, greater = f(x[:, None], y)
    same(total, x[:, None] + y)
    same(greater, np.broadcast_to(x[:, None] > y, (3, 3)))


def test_error_state_of_scipy(x64):
    """Where SciPy is told to raise, the call fails; nothing is left behind."""
    f = jaxbind.bind(scipy.special.gammaln)
    x = np.array([-1.0, 2.0])
    with scipy.special.errstate(all="ignore"):
        same(f(x), scipy.special.gammaln(x))
    with scipy.special.errstate(singular="raise"):
        with pytest.raises(Exception, match="singularity"):
            jax.block_until_ready(f(x))
    with scipy.special.errstate(all="ignore"):
        same(f(x), scipy.special.gammaln(x))


@pytest.mark.parametrize("threads", [0, 1])
def test_exceptions_on_any_thread(threads, x64):
    """A loop that raises makes the call fail, whichever thread it runs on."""
    f = jaxbind.bind(np.power, threads=threads)
    x = np.full(100_000, 3)
    for place in (0, 50_000, -1):
        powers = np.full(100_000, 2)
        powers[place] = -1
        inside = jax.jit(lambda x, n: jnp.sum(jnp.sort(f(jnp.sort(x), n + 0 * jnp.sort(n)))))
        for run in (jax.jit(f), inside):
            with pytest.raises(Exception, match="negative integer powers"):
                jax.block_until_ready(run(x, powers))
    same(jax.jit(f)(x, np.full(100_000, 2)), x**2)


def test_floating_point_flags_do_no_harm(x64):
    with np.errstate(all="raise"):
        got = jax.jit(jaxbind.bind(np.divide))(np.array([1.0, 0.0]), np.zeros(2))
        np.testing.assert_array_equal(got, [np.inf, np.nan])


def test_numba(x64):
    numba = pytest.importorskip("numba")

    @numba.vectorize(["float64(float64, float64)", "float32(float32, float32)"])
    def eager(a, b):
        return a * b + 1

    @numba.vectorize
    def lazy(a, b):
        return a * b + 1

    @numba.guvectorize(["void(float64[:], float64, float64[:])"], "(n),()->(n)")
    def scaled(x, a, out):
        for i in range(x.shape[0]):
            out[i] = a * x[i]

    x, a = np.arange(6.0).reshape(2, 3), np.array([2.0, 3.0])
    for f in (eager, lazy):
        bound = jaxbind.bind(f)
        same(jax.jit(bound)(x, 3.0), x * 3 + 1)
        narrow = x.astype(np.float32), np.float32(3)
        same(bound(*narrow), f(*narrow))
    same(jax.vmap(jaxbind.bind(scaled))(x, a), x * a[:, None])
    same(jaxbind.bind(scaled, threads=0)(np.tile(x, (500, 1)), 2.0), np.tile(x, (500, 1)) * 2)


@pytest.mark.parametrize("order", [1, -1])
def test_numbas_gufuncs_without_types(order, x64):
    """Compiled for each dtype that comes, in any order; results are of the operands' dtype."""
    numba = pytest.importorskip("numba")

    @numba.guvectorize("(n),()->(n),()")
    def above(x, limit, excess, count):
        count[0] = 0
        for i in range(x.shape[0]):
            excess[i] = max(x[i] - limit, 0)
            count[0] += x[i] > limit

    x = np.arange(12).reshape(3, 4)
    f = jaxbind.bind(above)
    for dtype in [np.float64, np.float32, np.int32, np.int64][::order]:
        given, limit = x.astype(dtype), dtype(5)
        want = np.maximum(given - limit, 0), (given > limit).sum(axis=1).astype(dtype)
        jax.tree.map(same, jax.jit(f)(given, limit), want)
        jax.tree.map(same, jax.vmap(f, (0, None))(given, limit), want)
    counted = jaxbind.bind(above, dtype=("float64", "int32"))
    np.testing.assert_array_equal(counted(x.astype(float), 5.0)[1], [0, 2, 4])


CYTHON = """# cython: freethreading_compatible=True
cimport cython

@cython.ufunc
cdef double cubed(double x) noexcept nogil:
    return x * x * x

@cython.ufunc
cdef (double, int) parted(double x, long n) noexcept nogil:
    return x * n, <int>n
"""
SETUP = """
import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

module = Extension("ufuncs", ["ufuncs.pyx"], include_dirs=[numpy.get_include()])
setup(ext_modules=cythonize([module], language_level=3))
"""


def test_cythons_ufuncs(tmp_path, monkeypatch, x64):
    (tmp_path / "ufuncs.pyx").write_text(CYTHON)
    (tmp_path / "setup.py").write_text(SETUP)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.syspath_prepend(tmp_path)
    ufuncs = importlib.import_module("ufuncs")
    cubed = jaxbind.bind(ufuncs.cubed, threads=2)
    cubed.def_partials(lambda x: 3 * x**2)
    x = np.linspace(-1, 1, 3000).reshape(2, 3, 500)
    np.testing.assert_array_equal(jax.vmap(cubed)(x), ufuncs.cubed(x))
    testing.check(cubed, max_examples=10, laws=["jvp", "adjoint", "vmap"])
    parted = jaxbind.bind(ufuncs.parted)
    for got, want in zip(parted(x, np.arange(500)), ufuncs.parted(x, np.arange(500))):
        np.testing.assert_array_equal(got, want)


# Partials -----------------------------------------------------------------------------------------

PARTIALS = {
    "numpy": (functools.partial(np.add, 1.0), lambda x: x + 1),
    "scipy": (functools.partial(scipy.special.jv, 1.5), lambda x: scipy.special.jv(1.5, x)),
    "python": (functools.partial(np.frompyfunc(lambda v, w: v - w, 2, 1), 1.0), lambda x: 1 - x),
    "nested": (functools.partial(functools.partial(np.hypot), 3.0), lambda x: np.hypot(3, x)),
    "keyword": (functools.partial(np.add, 1.0, casting="same_kind"), lambda x: x + 1),
}


@pytest.mark.parametrize("kind", PARTIALS)
def test_partials_of_ufuncs(kind, x64):
    function, wanted = PARTIALS[kind]
    f, x = jaxbind.bind(function, "()->()", dtype=float), np.linspace(0.5, 4, 5)
    want = np.asarray(wanted(x), float)
    for call in (f, jax.jit(f), jax.vmap(f)):
        np.testing.assert_array_equal(call(x), want)
    with pytest.raises(TypeError, match="got 2 positional arguments; it takes 1"):
        f(x, x)


def test_a_partial_of_a_ufunc_takes_the_ufuncs_keywords(x64):
    f = jaxbind.bind(functools.partial(np.add, 1.5), "(n)->(n)", dtype=np.float32)
    x = np.arange(3.0)
    got = f(x, dtype="float32", casting="unsafe")
    np.testing.assert_array_equal(got, np.float32([1.5, 2.5, 3.5]))


def test_gufuncs_that_write_into_operands_are_refused():
    numba = pytest.importorskip("numba")

    @numba.guvectorize(["void(float64[:],float64[:])"], "(n)->(n)", writable_args=(0,))
    def moves(x, out):
        for i in range(x.shape[0]):
            out[i] = x[i]
            x[i] = 0

    with pytest.raises(
        TypeError, match="moves: the loop of this ufunc writes into its operand.*lea"
    ):
        jaxbind.bind(moves)


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("jitted", [True, False])
def test_numbers_of_python_beside_arrays(x64, jitted):
    """An integer is one where a loop has a place for it, as in NumPy's own calls."""
    calls = [
        (np.ldexp, (np.float32(1.5), 3)),
        (scipy.special.eval_hermite, (3, np.float32(0.5))),
        (scipy.special.expn, (2, np.float32(0.5))),
        (scipy.special.jv, (2, np.float32(0.5))),
        (np.power, (np.float32(2), 3)),
        (np.add, (np.int8(3), 4)),
        (np.multiply, (np.int32(3), 0.5)),
    ]
    with jax.enable_x64(x64):
        for ufunc, args in calls:
            f = jaxbind.bind(ufunc)
            got = (
                jax.jit(lambda x, f=f, args=args: f(*_put(args, x)))(_array(args))
                if jitted
                else f(*args)
            )
            want = ufunc(*args)
            np.testing.assert_allclose(got, want, rtol=1e-15 if x64 else 1e-6)
            if x64:
                assert got.dtype == want.dtype


def _array(args):
    return next(a for a in args if isinstance(a, np.generic))


def _put(args, x):
    return [x if isinstance(a, np.generic) else a for a in args]
