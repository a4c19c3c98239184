"""C, Cython, Numba and Fortran functions behind pointers, called as they are."""

import ctypes
import ctypes.util
import gc
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis.extra import numpy as hnp

import jaxbind
from jaxbind import Kernel

SOURCE = r"""
#include <complex.h>
#include <math.h>
#include <stdint.h>

void axpy(const double *x, const double *y, double *out, int64_t n, double alpha) {
  for (int64_t i = 0; i < n; i++) out[i] = alpha * x[i] + y[i];
}
void matvec(const float *a, const float *x, float *out, int m, int n) {
  for (int i = 0; i < m; i++) {
    float total = 0;
    for (int j = 0; j < n; j++) total += a[i * n + j] * x[j];
    out[i] = total;
  }
}
double mixed(double a, int i, float b, long j, double c, short k, unsigned char l) {
  return a + 10 * i + 100 * b + 1e3 * j + 1e4 * c + 1e5 * k + 1e6 * l;
}
double complex turned(double complex z, double a) { return z * cexp(I * a); }
float complex turned_in_single(float complex z, float a) { return z * a; }
int64_t collatz(int64_t n) { int64_t k = 0; while (n > 1) { n = n % 2 ? 3 * n + 1 : n / 2; k++; } return k; }
int negative_fails(const double *x, double *out, int64_t n) {
  for (int64_t i = 0; i < n; i++) { if (x[i] < 0) return 100 + (int)i; out[i] = sqrt(x[i]); }
  return 0;
}
void by_reference(const double *x, double *out, int64_t n, int *info) {
  *info = x[0] > 5 ? -3 : 0;
  for (int64_t i = 0; i < n; i++) out[i] = x[i];
}
void sorted(double *x, int64_t n) {
  for (int64_t i = 1; i < n; i++)
    for (int64_t j = i; j > 0 && x[j - 1] > x[j]; j--) { double t = x[j]; x[j] = x[j - 1]; x[j - 1] = t; }
}
void both(const double *x, double *low, double *high, int64_t n) {
  *low = *high = x[0];
  for (int64_t i = 1; i < n; i++) { if (x[i] < *low) *low = x[i]; if (x[i] > *high) *high = x[i]; }
}
void eight(const double *a, const double *b, const double *c, const double *d, const double *e,
           const double *f, const double *g, const double *h, double *out, int64_t n, int64_t m) {
  for (int64_t i = 0; i < n; i++)
    out[i] = a[i] + 2 * b[i] + 3 * c[i] + 4 * d[i] + 5 * e[i] + 6 * f[i] + 7 * g[i] + 8 * h[i] + m;
}
void inner(char **args, intptr_t const *dims, intptr_t const *steps, void *data) {
  for (intptr_t k = 0; k < dims[0]; k++) {
    double total = data ? *(double *)data : 0;
    for (intptr_t i = 0; i < dims[1]; i++)
      total += *(double *)(args[0] + k * steps[0] + i * steps[3])
             * *(double *)(args[1] + k * steps[1] + i * steps[4]);
    *(double *)(args[2] + k * steps[2]) = total;
  }
}
void moving(char **args, intptr_t const *dims, intptr_t const *steps, void *data) {
  for (intptr_t k = 0; k < dims[0]; k++, args[0] += steps[0], args[1] += steps[1])
    *(double *)args[1] = 3 * *(double *)args[0];
}
double halved(double x) { return x / 2; }
typedef struct { double by; int64_t plus; } config;
int32_t scaled(const double *x, double a, double *out, int64_t n, const config *c) {
  for (int64_t i = 0; i < n; i++) out[i] = a * c->by * x[i] + c->plus;
  return 0;
}
void phase(const double complex *z, double a, double complex *out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = z[i] * cexp(I * a);
}
double value_and_gradient(const double *x, int64_t n, double *g) {
  double total = 0;
  for (int64_t i = 0; i < n; i++) { total += x[i] * x[i]; g[i] = 2 * x[i]; }
  return total;
}
float times(float x, int k) { return x * k; }
void reversed_into(const double *x, double *out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = x[n - 1 - i];
}
"""


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.c").write_text(SOURCE)
    built = folder / "kernels.so"
    command = ["cc", "-O2", "-shared", "-fPIC", folder / "kernels.c", "-o", built, "-lm"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(built))


def floats(*shape):
    return hnp.arrays(float, shape, elements=st.floats(-9, 9))


# Conventions --------------------------------------------------------------------------------------


def axpy_of(lib):
    args = "x, y, out, n, double alpha"
    return Kernel(lib.axpy, "(n),(n)->(n)", args=args, static="alpha")


@given(data=st.data(), n=st.integers(0, 5), alpha=st.floats(-3, 3))
def test_plain_arrays(lib, data, n, alpha):
    x, y = data.draw(floats(2, 3, n)), data.draw(floats(n))
    kernel = axpy_of(lib)
    want = alpha * x + y
    with jax.enable_x64(True):
        f = jaxbind.bind(kernel)
        np.testing.assert_allclose(f(x, y, alpha=alpha), want, rtol=1e-14, atol=1e-14)
        mapped = jax.vmap(lambda x, y: f(x, y, alpha=alpha), in_axes=(1, None), out_axes=1)
        np.testing.assert_array_equal(mapped(x, y), kernel(x, y, alpha=alpha))


def test_types_of_arguments(lib, x64):
    a, x = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)
    args = "const float *a, const float *x, float *out, int m, int n"
    f = jaxbind.bind(Kernel(lib.matvec, "(m,n),(n)->(m)", args=args))
    np.testing.assert_array_equal(f(a, x), a @ x)
    assert f(a, x).dtype == np.float32


def test_numbers_by_value(lib, x64):
    args = "double a, int i, float b, long j, double c, short k, unsigned char l"
    f = jaxbind.bind(Kernel(lib.mixed, ",".join(["()"] * 7) + "->()", args=args))
    given = 1.0, np.int32(-2), np.float32(3), np.int64(-4), 5.0, np.int16(-6), np.uint8(200)
    weights = 1, 10, 100, 1e3, 1e4, 1e5, 1e6
    assert f(*given) == sum(w * float(x) for w, x in zip(weights, given, strict=True))


@given(floats(4), floats(4))
def test_complex_numbers_by_value(lib, x, y):
    z = x + 1j * y
    with jax.enable_x64(True):
        f = jaxbind.bind(Kernel(lib.turned, "(),()->()", args="double complex z, double a"))
        np.testing.assert_allclose(f(z, y), z * np.exp(1j * y), atol=1e-13)
        g = jaxbind.bind(Kernel(lib.turned_in_single, "(),()->()", args="float complex z, float a"))
        z, y = z.astype(np.complex64), y.astype(np.float32)
        np.testing.assert_allclose(g(z, y), z * y, rtol=1e-6)


def test_integers(lib, x64):
    f = jaxbind.bind(Kernel(lib.collatz, "()->()", args="int64_t n"))
    np.testing.assert_array_equal(f(np.arange(1, 8)), [0, 1, 7, 2, 5, 8, 16])
    g = jaxbind.bind(Kernel(lib.halved, "()->()", args="double x -> double"))
    assert g(3) == 1.5
    with pytest.raises(
        TypeError, match="dtypes= says float64 for its result, but its C type is float32"
    ):
        Kernel(lib.halved, "()->()", args="double x -> float", dtypes=float)


@given(floats(3, 4))
def test_several_results(lib, x):
    with jax.enable_x64(True):
        f = jaxbind.bind(Kernel(lib.both, "(n)->(),()", args="x, low, high, n"))
        low, high = f(x)
        np.testing.assert_array_equal(low, x.min(1))
        np.testing.assert_array_equal(high, x.max(1))


def test_more_arguments_than_registers(lib, x64):
    f = jaxbind.bind(
        Kernel(
            lib.eight,
            ",".join(["(n)"] * 8) + "->(n)",
            args="a, b, c, d, e, f, g, h, out, n, int64_t m",
            static="m",
        )
    )
    rows = np.random.default_rng(0).normal(size=(8, 5))
    np.testing.assert_allclose(f(*rows, m=7), np.arange(1, 9) @ rows + 7, rtol=1e-12)


@given(floats(3, 4), floats(4))
def test_inner_loop(lib, x, y):
    start = ctypes.c_double(2.5)
    with jax.enable_x64(True):
        f = jaxbind.bind(Kernel(lib.inner, "(n),(n)->()", convention="gufunc"))
        g = jaxbind.bind(
            Kernel(lib.inner, "(n),(n)->()", convention="gufunc", data=ctypes.addressof(start))
        )
        np.testing.assert_allclose(f(x, y), x @ y, atol=1e-12)
        np.testing.assert_allclose(g(x, y), x @ y + 2.5, atol=1e-12)
        np.testing.assert_allclose(jax.vmap(f, (1, None))(x.T.reshape(4, 3), y), x @ y, atol=1e-12)


@given(floats(3, 4))
def test_inner_loop_that_moves_its_pointers_on(lib, x):
    """As SciPy's did up to 1.17: NumPy hands every call a copy of them."""
    for x64 in (True, False):
        with jax.enable_x64(x64):
            f = jaxbind.bind(Kernel(lib.moving, "()->()", convention="gufunc"), threads=2)
            single = x.astype(np.float32)
            want = (3.0 * single.astype(float)).astype(np.float64 if x64 else np.float32)
            np.testing.assert_array_equal(f(single), want)
            np.testing.assert_array_equal(jax.vmap(f, 1)(single), want.T)


@pytest.mark.skipif(shutil.which("gfortran") is None, reason="no gfortran")
def test_fortran(tmp_path, x64):
    (tmp_path / "f.f90").write_text(
        "subroutine gemv(m, n, a, x, alpha, y, info) bind(c)\n"
        "  integer :: m, n, info\n  double precision :: a(m, n), x(n), y(m), alpha\n"
        "  y = alpha * matmul(a, x)\n  info = 0\n  if (x(1) < 0) info = 4\nend subroutine\n"
    )
    built = tmp_path / "f.so"
    subprocess.run(["gfortran", "-shared", "-fPIC", tmp_path / "f.f90", "-o", built], check=True)
    kernel = Kernel(
        ctypes.CDLL(str(built)).gemv,
        "(m,n),(n)->(m)",
        convention="Fortran",
        args="m, n, a, x, alpha, y, info",
        static="alpha",
        status="info",
    )
    f = jaxbind.bind(kernel)
    rng = np.random.default_rng(0)
    a, x = rng.normal(size=(5, 2, 3)), np.abs(rng.normal(size=(5, 3)))
    want = 2 * np.einsum("bij,bj->bi", a, x)
    np.testing.assert_allclose(f(a, x, alpha=2.0), want, rtol=1e-14)
    np.testing.assert_allclose(kernel(a, x, alpha=2.0), want, rtol=1e-14)
    with pytest.raises(Exception, match="status 4"):
        f(a, -x, alpha=1.0)


# Where pointers come from -------------------------------------------------------------------------


def test_ctypes(x64):
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    libm.cbrt.argtypes, libm.cbrt.restype = [ctypes.c_double], ctypes.c_double
    f = jaxbind.bind(Kernel(libm.cbrt))
    x = np.linspace(-2, 2, 7)
    np.testing.assert_allclose(f(x), np.cbrt(x), rtol=1e-15)
    address = ctypes.cast(libm.cbrt, ctypes.c_void_p).value
    for pointer in (address, ctypes.c_void_p(address)):
        same = jaxbind.bind(Kernel(pointer, "()->()", args="double x"))
        np.testing.assert_array_equal(same(x), f(x))


def test_cython(x64):
    from scipy.special import cython_special

    f = jaxbind.bind(Kernel(cython_special.__pyx_capi__["j0"]))
    x = np.linspace(0, 9, 7)
    np.testing.assert_array_equal(f(x), scipy.special.j0(x))


def test_low_level_callable(x64):
    from scipy import LowLevelCallable
    from scipy.special import cython_special

    callable_ = LowLevelCallable.from_cython(cython_special, "j1")
    f = jaxbind.bind(Kernel(callable_))
    np.testing.assert_array_equal(f(np.arange(3.0)), scipy.special.j1(np.arange(3.0)))


def test_cffi(x64):
    cffi = pytest.importorskip("cffi")
    ffi = cffi.FFI()
    ffi.cdef("double hypot(double, double);")
    f = jaxbind.bind(Kernel(ffi.dlopen(ctypes.util.find_library("m")).hypot))
    assert f(3.0, 4.0) == 5.0


CDEF = """
typedef struct { double by; int64_t plus; } config;
int scaled(const double *x, double a, double *out, int64_t n, const config *c);
void phase(const double _Complex *z, double a, double _Complex *out, int64_t n);
void inner(char **args, intptr_t *dims, intptr_t *steps, void *data);
"""


def test_cffi_knows_the_types(lib, x64):
    """Also beside those of arguments that are no numbers: a number by value stays one."""
    cffi = pytest.importorskip("cffi")
    ffi = cffi.FFI()
    ffi.cdef(CDEF)
    c = ffi.dlopen(lib._name)
    z = np.array([1 + 2j, 3 - 1j])
    phase = jaxbind.bind(Kernel(c.phase, "(n),()->(n)", args="z, a, out, n"))
    np.testing.assert_allclose(phase(z, 0.5), z * np.exp(0.5j), rtol=1e-15)
    np.testing.assert_allclose(phase(z.real, 0.5), z.real * np.exp(0.5j), rtol=1e-15)
    inner = jaxbind.bind(Kernel(c.inner, "(n),(n)->()", convention="gufunc"))
    assert inner(z.real, z.imag) == z.real @ z.imag
    with pytest.raises(TypeError, match=r"c is config const \*|c is config \*"):
        Kernel(c.scaled, "(n),(),(m)->(n)", args="x, a, out, n, c", status="return")


@pytest.mark.parametrize("given", ["struct", "pointer", "byref", "cffi", "cffi pointer", "array"])
def test_data(lib, given, x64):
    """What it is the address of lives as long as the kernel does."""
    args = "const double *x, double a, double *out, n, data"

    class Config(ctypes.Structure):
        _fields_ = (("by", ctypes.c_double), ("plus", ctypes.c_int64))

    def bound():
        made = Config(3.0, 2)
        if given.startswith("cffi"):
            ffi = pytest.importorskip("cffi").FFI()
            ffi.cdef("typedef struct { double by; int64_t plus; } config;")
            owner = ffi.new("config *", {"by": 3.0, "plus": 2})
            data = owner if "pointer" in given else owner[0]
        elif given == "array":
            data = np.frombuffer(bytes(made), np.int64).copy()
        else:
            data = {"struct": lambda c: c, "pointer": ctypes.pointer, "byref": ctypes.byref}[given](
                made
            )
        kernel = Kernel(lib.scaled, "(n),()->(n)", args=args, data=data, status="return")
        return jaxbind.bind(kernel)

    f = bound()
    gc.collect()
    noise = [Config(-1.0, -1) for _ in range(1000)]
    np.testing.assert_array_equal(f(np.arange(3.0), 2.0), 6 * np.arange(3.0) + 2)
    del noise
    with pytest.raises(TypeError, match=r"^Kernel scaled: data='abc' is a str, which is no memory"):
        Kernel(lib.scaled, "(n),()->(n)", args=args, data="abc")


def test_a_ctypes_pointer_to_a_struct(lib, x64):
    class Config(ctypes.Structure):
        _fields_ = (("by", ctypes.c_double), ("plus", ctypes.c_int64))

    double = ctypes.POINTER(ctypes.c_double)
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int32, double, ctypes.c_double, double, ctypes.c_int64, ctypes.POINTER(Config)
    )
    scaled = prototype(("scaled", lib))
    config = Config(3.0, 2)
    f = jaxbind.bind(
        Kernel(scaled, "(n),()->(n)", args="x, a, out, n, data", data=config, status="return")
    )
    np.testing.assert_array_equal(f(np.arange(3.0), 2.0), 6 * np.arange(3.0) + 2)
    with pytest.raises(
        TypeError,
        match="c is LP_Config in the C function's own signature.*which is no pointer to numbers:"
        " call it data in args=, and give it as data=",
    ):
        Kernel(scaled, "(n),()->(n)", args="x, a, out, n, int64_t *c", static="c", status="return")


def test_a_number_whose_passing_nobody_knows_is_refused(lib, x64):
    with pytest.raises(
        TypeError,
        match="a is a number, and nothing says whether C takes it by value or by reference: write"
        r" 'double a' or 'double \*a' in args=, or set argtypes",
    ):
        Kernel(lib.scaled, "(n),()->(n)", args="x, a, out, n, data", data=0, status="return")


def test_a_result_that_is_returned_beside_arrays(lib, x64):
    x = np.arange(1.0, 7).reshape(2, 3)
    for args in (
        "const double *x, int64_t n, double *g -> double",
        "double x[3], n, out -> double",
    ):
        f = jaxbind.bind(Kernel(lib.value_and_gradient, "(n)->(n),()", args=args))
        gradient, value = jax.jit(f)(x)
        np.testing.assert_array_equal(gradient, 2 * x)
        np.testing.assert_array_equal(value, (x**2).sum(-1))
    with pytest.raises(ValueError, match="one that is returned is the last of the signature"):
        Kernel(lib.value_and_gradient, "(n)->(),(n)", args="x, n, out -> double")


def test_integers_of_python(lib):
    times = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_float, ctypes.c_int)(("times", lib))
    f = jaxbind.bind(Kernel(times, name="times"))
    for x64 in (True, False):
        with jax.enable_x64(x64):
            assert f(1.5, 3) == 4.5 and jax.jit(lambda x: f(x, 3))(np.float32(2)) == 6
            assert jax.jit(f)(1.5, 3) == 4.5
    with jax.enable_x64(True):
        for call in (f, lambda x, k: jax.jit(lambda x: f(x, k))(x)):
            with pytest.raises(
                TypeError, match=r"argument 1 \(x2\) is 4294967297, but the kernel takes int32"
            ):
                call(1.5, 2**32 + 1)
        with pytest.raises(TypeError, match="is int64, but the kernel takes int32"):
            f(1.5, np.int64(3))


def test_numba(x64):
    numba = pytest.importorskip("numba")
    f = jaxbind.bind(Kernel(numba.cfunc("float64(float64, int32)")(lambda x, k: x * k)))
    np.testing.assert_array_equal(f(np.arange(3.0), np.int32(2)), [0, 2, 4])

    @numba.cfunc("void(CPointer(float64), CPointer(float64), int64)")
    def reversed_(x, out, n):
        for i in range(n):
            out[i] = x[n - 1 - i]

    g = jaxbind.bind(Kernel(reversed_, "(n)->(n)"))
    np.testing.assert_array_equal(jax.vmap(g)(np.arange(6.0).reshape(2, 3)), [[2, 1, 0], [5, 4, 3]])


# Failure, sharing memory, derivatives -------------------------------------------------------------


def test_status(lib, x64):
    f = jaxbind.bind(Kernel(lib.negative_fails, "(n)->(n)", status="return"))
    np.testing.assert_array_equal(f(np.array([4.0, 9.0])), [2, 3])
    with pytest.raises(Exception) as caught:
        jax.block_until_ready(f(np.array([[1.0, 1.0], [4.0, -1.0]])))
    assert "negative_fails reported failure: status 101" in str(caught.value)
    assert "called with x1: float64[2]" in str(caught.value)
    assert "in iteration 1 over its loop dimensions" in str(caught.value)
    args = "x, out, n, int *info"
    g = jaxbind.bind(Kernel(lib.by_reference, "(n)->(n)", args=args, status="info"))
    with pytest.raises(Exception, match="status -3"):
        jax.block_until_ready(g(np.array([6.0])))


@given(floats(2, 5))
def test_in_place(lib, x):
    with jax.enable_x64(True):
        f = jaxbind.bind(Kernel(lib.sorted, "(n)->(n)", args="x, n", inout="x"))
        kept = jnp.asarray(x)
        np.testing.assert_array_equal(f(kept), np.sort(x))
        np.testing.assert_array_equal(kept, x)
        given_away = jax.jit(f, donate_argnums=0)(jnp.asarray(x))
        np.testing.assert_array_equal(given_away, np.sort(x))
        both = jax.jit(lambda x: (f(x), x))(x)
        np.testing.assert_array_equal(both[0], np.sort(x))
        np.testing.assert_array_equal(both[1], x)
        assert "output_operand_aliases" in jax.jit(f).lower(x).as_text()


def test_derivatives(lib, x64):
    f = jaxbind.bind(axpy_of(lib))

    @f.def_jvp
    def _(primals, tangents, *, alpha):
        del primals
        return alpha * tangents[0] + tangents[1]

    @f.def_vjp
    def _(primals, cotangent, *, alpha):
        del primals
        return alpha * cotangent, cotangent

    x, y = np.arange(3.0), np.ones(3)
    assert jax.grad(lambda x: f(x, y, alpha=3.0).sum())(x).tolist() == [3, 3, 3]
    assert jax.jvp(lambda y: f(x, y, alpha=3.0), (y,), (x,))[1].tolist() == x.tolist()


@pytest.mark.parametrize("threads", [0, 3])
def test_threads(lib, threads, x64):
    x = np.random.default_rng(0).normal(size=(3000, 50))
    f = jaxbind.bind(Kernel(lib.sorted, "(n)->(n)", args="x, n", inout="x"), threads=threads)
    np.testing.assert_array_equal(jax.jit(f)(x), np.sort(x))


def test_32_bits(lib):
    """Operands are converted to doubles and results back."""
    f = jaxbind.bind(axpy_of(lib))
    x = jnp.arange(3)
    got = f(x, jnp.ones(3), alpha=0.5)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, [1, 1.5, 2])


def test_the_owner_is_kept(lib, x64):
    callback = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(lambda x: 2 * x)
    f = jax.jit(jaxbind.bind(Kernel(callback)))
    f(1.0)
    del callback
    assert f(21.0) == 42


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda lib: Kernel(0, "()->()"), r"Kernel\(0\): the pointer is null"),
        (lambda lib: Kernel(ctypes.c_void_p(), "()->()"), r"Kernel\(.*\): the pointer is null"),
        (lambda lib: Kernel(-1, "()->()"), r"Kernel\(-1\): it is out of the range of addresses"),
        (lambda lib: Kernel(2**64, "()->()"), "it is out of the range of addresses"),
        (lambda lib: Kernel(print, "()->()"), "holds no C function that is known here. Give a ctypes"),
        (lambda lib: Kernel(lib.axpy, "(),()->()"), "neither args= nor the pointer says"),
        (lambda lib: Kernel(lib.axpy), "it has no signature"),
        (lambda lib: Kernel(lib.axpy, "(n)->(n)", args="x, y, out, n"),
         r"args= has 2 inputs \(x, y\); the signature \(n\)->\(n\) has 1"),
        (lambda lib: Kernel(lib.axpy, "(n)->(n)", args="x, n"),
         "args= has no output, and a result of core dimensions cannot be returned"),
        (lambda lib: Kernel(lib.axpy, "(n)->(n)", args="struct s *x, out, n"),
         r"C type 'struct s \*', which is not supported"),
        (lambda lib: Kernel(lib.axpy, "(n)->(n)", args="x, x, out, n"), "names x twice"),
        (lambda lib: Kernel(lib.axpy, "(n)->(n)", args="double x, out, n"), "a pointer is missing"),
        (lambda lib: Kernel(lib.axpy, "(n)->(n)", args="x, out, double n"), "is a core dimension"),
        (lambda lib: Kernel(lib.axpy, "(n)->(n)", args="x, out, n", static="a"),
         "static= names a, which is not in"),
        (lambda lib: Kernel(lib.axpy, "(n)->(n)", status="e"), "status='e' is not in args="),
        (lambda lib: Kernel(lib.axpy, "(n)->(n)", convention="java"), "it is 'C', 'Fortran' or"),
        (lambda lib: Kernel(lib.axpy, "(n?)->(n?)"), "a kernel has not"),
        (lambda lib: Kernel(lib.axpy, "(n)->(n)", dtypes=(float,)), "dtypes= names 1; there are 2"),
        (lambda lib: Kernel(lib.mixed, ",".join(["()"] * 9) + "->()",
                            args=", ".join(f"double a{i}" for i in range(9))), "at most 8"),
        (lambda lib: jaxbind.bind(axpy_of(lib), "(n)->(n)"), "belongs to the Kernel itself"),
        (lambda lib: jaxbind.bind(axpy_of(lib), compute_dtype=float), "leave compute_dtype= out"),
        (lambda lib: jaxbind.bind(axpy_of(lib))(np.ones(2), 1j * np.ones(2), alpha=1.0),
         r"y\) is complex.*, which cannot hold that exactly. Give its .real part, if that"),
        (lambda lib: jaxbind.bind(axpy_of(lib))(np.ones(2), np.ones(2)), "static keyword argument alpha"),
        (lambda lib: jaxbind.bind(axpy_of(lib))(np.ones(2), np.ones(2), alpha="a"),
         "static parameter alpha='a' does not fit the kernel's float64"),
        (lambda lib: jaxbind.bind(axpy_of(lib))(1j * np.ones(2), np.ones(2), alpha=1.0),
         r"argument 0 \(x\) is complex64, but the kernel takes float64"),
        (lambda lib: jaxbind.bind(axpy_of(lib), aliases={"z": 0}), "aliases= names 'z'"),
        (lambda lib: jaxbind.bind(axpy_of(lib), aliases={"x": 0, "y": 0}), "several arguments"),
        (lambda lib: jaxbind.bind(axpy_of(lib), aliases={"x": 1})(np.ones(2), np.ones(2), alpha=1.0),
         r"aliases= maps argument 0 \(x\) to result 1; there is 1 result, counted from 0"),
    ],
)  # fmt: skip
def test_refused(lib, make, text):
    with pytest.raises((TypeError, ValueError), match=text):
        make(lib)


def test_the_pointers_own_signature_is_compared(lib):
    function = ctypes.CDLL(lib._name).halved
    function.argtypes, function.restype = [ctypes.c_double], ctypes.c_double
    for args, dtypes, text in [
        ("double x, double y", None, r"takes 1 arguments, float64 \(float64\); the signature"),
        ("const double *x", None, r"x is float64 \* by args= and dtypes=, but float64 in the C"),
        ("x", np.float32, "dtypes= says float32 for x, but its C type is float64"),
    ]:
        inputs = ",".join(["()"] * (1 + args.count(",")))
        with pytest.raises(TypeError, match=text):
            Kernel(function, f"{inputs}->()", args=args, dtypes=dtypes)
    function.argtypes = [ctypes.py_object]
    with pytest.raises(TypeError, match="py_object is not supported"):
        Kernel(function, "()->()")


F77 = """
      subroutine gram(m, n, a, g)
      integer m, n, i, j, k
      double precision a(m, n), g(n, n)
Cf2py intent(in) a
Cf2py intent(out) g
      do 30 j = 1, n
        do 20 i = 1, n
          g(i, j) = 0d0
          do 10 k = 1, m
            g(i, j) = g(i, j) + a(k, i) * a(k, j)
   10     continue
   20   continue
   30 continue
      end
"""


@pytest.mark.skipif(shutil.which("gfortran") is None, reason="no gfortran")
def test_f2py(tmp_path, monkeypatch, x64):
    pytest.importorskip("mesonbuild")
    (tmp_path / "gram.f").write_text(F77)
    build = [sys.executable, "-m", "numpy.f2py", "-c", "gram.f", "-m", "wrapped"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        build, cwd=tmp_path, check=True, capture_output=True, env={**os.environ, "PATH": path}
    )
    monkeypatch.syspath_prepend(tmp_path)
    wrapped = importlib.import_module("wrapped")
    gram = Kernel(wrapped.gram, "(m,n)->(n,n)", args="m, n, a, out", convention="Fortran")
    a = np.random.default_rng(0).normal(size=(3, 4, 2))
    np.testing.assert_allclose(jaxbind.bind(gram)(a), np.swapaxes(a, 1, 2) @ a)


# Static parameters of each C type -----------------------------------------------------------------

C_TYPES = {
    "bool": ctypes.c_bool, "uint8_t": ctypes.c_uint8, "unsigned short": ctypes.c_ushort,
    "unsigned": ctypes.c_uint, "size_t": ctypes.c_size_t, "int8_t": ctypes.c_int8,
    "int": ctypes.c_int, "int64_t": ctypes.c_int64,
}  # fmt: skip


def returns_static(name):
    """A kernel that tells which static parameter it has got."""
    seen = []
    kind = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double, C_TYPES[name])
    callback = kind(lambda x, n: seen.append(n) or x)
    kernel = Kernel(callback, "()->()", args=f"double x, {name} n", static="n", name="k")
    return jaxbind.bind(kernel), seen


@pytest.mark.parametrize("name", C_TYPES)
def test_static_integers_fit_by_their_value(name, x64):
    f, seen = returns_static(name)
    bits, unsigned = 8 * ctypes.sizeof(C_TYPES[name]), "u" in name or name == "size_t"
    low, high = (0, 1) if name == "bool" else (0, 2**bits - 1)
    if not unsigned and name != "bool":
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    fitting = [low, high, True, np.int8(1)] + [np.uint64(high)] * (high > 0)
    for value in fitting:
        f(2.0, n=value).block_until_ready()
    assert seen == [int(value) for value in fitting]
    for value in (low - 1, high + 1, 2**70, np.int8(-1) if low == 0 else 1.0, 1.5, "1"):
        with pytest.raises(TypeError, match=r"k: static parameter n=.* does not fit the kernel's"):
            f(2.0, n=value)
    assert len(seen) == len(fitting)


LETTERS = r"""
#include <stdint.h>
#include <string.h>
void chosen(const double *x, double *out, int64_t n, char mode) {
  for (int64_t i = 0; i < n; i++) out[i] = mode == 'U' ? x[i] : -x[i];
}
void length(const double *x, double *out, const char *text) { *out = x[0] + strlen(text); }
void uplo(const double *x, double *out, const char *which) { *out = *which == 'L' ? *x : -*x; }
void used_up(const double *x, double *out, double *w, int64_t n) {
  *out = *x;
  for (int64_t i = 0; i < n; i++) { *out += w[i]; w[i] = 0; }
}
void largest(const uint64_t *x, uint64_t *out, const uint64_t *w, int64_t n) {
  *out = *x;
  for (int64_t i = 0; i < n; i++) if (w[i] > *out) *out = w[i];
}
void fortran_text(const double *x, double *out, const char *a, const char *b, size_t m, size_t n) {
  *out = *x + 100 * m + n;
}
void poly(const double *x, double *out, const double *c, int64_t n) {
  *out = 0;
  for (int64_t i = n - 1; i >= 0; i--) *out = *out * *x + c[i];
}
"""


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    (folder / "letters.c").write_text(LETTERS)
    command = ["cc", "-shared", "-fPIC", folder / "letters.c", "-o", folder / "letters.so"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "letters.so"))


def test_static_letters(letters, x64):
    args = "const double *x, double *out, int64_t n, char mode"
    f = jaxbind.bind(Kernel(letters.chosen, "(n)->(n)", args=args, static="mode", name="chosen"))
    x = np.arange(3.0)
    for mode, sign in [("U", 1), (b"U", 1), (ord("U"), 1), ("L", -1)]:
        np.testing.assert_array_equal(f(x, mode=mode), sign * x)
    for mode in ["UL", "", b"", "\0", "é"]:
        with pytest.raises(TypeError, match=r"mode=.* does not fit the kernel's char: "):
            f(x, mode=mode)
    args = "const double *x, double *out, character *which"
    f = jaxbind.bind(
        Kernel(letters.uplo, "()->()", args=args, convention="Fortran", static="which")
    )
    assert f(2.0, which="L") == 2 and f(2.0, which="Upper") == -2


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40))
def test_static_texts(letters, text):
    letters.length.argtypes = [
        ctypes.POINTER(ctypes.c_double),
        ctypes.POINTER(ctypes.c_double),
        ctypes.c_char_p,
    ]
    letters.length.restype = None
    f = jaxbind.bind(Kernel(letters.length, "()->()", args="x, out, text", static="text"))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(
            jax.vmap(lambda x: f(x, text=text))(np.arange(3.0)), np.arange(3.0) + len(text.encode())
        )
        with pytest.raises(TypeError, match=r"kernel's char \*: a text ends with its first null"):
            f(1.0, text=text + "\0")


@pytest.mark.parametrize("count", [2, 3, 9])
def test_what_a_kernel_writes_into_a_static_array_is_gone(letters, count, x64):
    args = "const double *x, double *out, double *w, int64_t n"
    kernel = Kernel(letters.used_up, "()->()", args=args, static=["w", "n"])
    f = jax.jit(lambda x: jaxbind.bind(kernel)(x, w=(1.0,) * count, n=count))
    for _ in range(2):
        np.testing.assert_array_equal(f(np.zeros(4)), np.full(4, float(count)))


def test_static_integers_of_any_size(letters, x64):
    args = "const uint64_t *x, uint64_t *out, const uint64_t *w, int64_t n"
    f = jaxbind.bind(Kernel(letters.largest, "()->()", args=args, static=["w", "n"]))
    assert int(f(np.uint64(0), w=(2**64 - 1, 1), n=2)) == 2**64 - 1
    assert f(np.uint64(7), w=(), n=0) == 7
    with pytest.raises(TypeError, match=r"w=\(1, -1\) does not fit the kernel's uint64 \*"):
        f(np.uint64(0), w=(1, -1), n=2)
    with pytest.raises(TypeError, match="w=.* does not fit the kernel's uint64"):
        f(np.uint64(0), w=(1, 2.5), n=2)


def test_lengths_of_texts_in_fortran(letters, x64):
    """They follow by value behind all other arguments."""
    kernel = Kernel(
        letters.fortran_text,
        "()->()",
        args="x, out, character a, character b",
        convention="Fortran",
        static=["a", "b"],
        name="k",
    )
    f = jaxbind.bind(kernel)
    assert f(1.0, a="hello", b="") == 501
    assert f(1.0, a=b"hi", b="x" * 40) == 241
    many = [f"c{i}" for i in range(16)]  # with their lengths more than fit
    args = ", ".join(["x", "out", *(f"character {c}" for c in many)])
    with pytest.raises(TypeError, match="32 arguments in all"):
        Kernel(letters.fortran_text, "()->()", args=args, convention="Fortran", static=many)


@given(c=st.lists(st.floats(-9, 9), max_size=6))
def test_static_arrays(letters, c):
    args = "const double *x, double *out, const double *c, int64_t n"
    f = jaxbind.bind(Kernel(letters.poly, "()->()", args=args, static=["c", "n"]))
    with jax.enable_x64(True):
        x = np.linspace(-1, 1, 5)
        np.testing.assert_allclose(
            f(x, c=tuple(c), n=len(c)), np.polyval(c[::-1] or [0.0], x), atol=1e-12
        )
        with pytest.raises(TypeError, match="c=.* does not fit the kernel's float64"):
            f(x, c=((1.0,),), n=1)
        with pytest.raises(TypeError, match="n=.* the kernel's int64: one number is wanted"):
            f(x, c=(1.0,), n=(1,))


# Rules --------------------------------------------------------------------------------------------


def reversing(lib, which):
    """A compiled function that turns a vector round."""
    if which == "kernel":
        return Kernel(lib.reversed_into, "(n)->(n)")
    numba = pytest.importorskip("numba")

    @numba.guvectorize(["void(float64[:],float64[:])"], "(n)->(n)")
    def flip(x, out):
        for i in range(len(x)):
            out[i] = x[len(x) - 1 - i]

    return flip


@pytest.mark.parametrize("which", ["kernel", "guvectorize"])
def test_rules_get_core_dimensions(lib, which, x64):
    x, w = np.random.default_rng(0).normal(size=(2, 2, 3, 4))
    seen = []
    f = jaxbind.bind(reversing(lib, which), linear=True)
    f.def_transpose(lambda ct: seen.append(ct.shape) or ct[::-1])
    gradient = jax.grad(lambda x, w: jnp.sum(w * f(x)))
    np.testing.assert_array_equal(jax.vmap(jax.vmap(gradient))(x, w), w[..., ::-1])
    assert set(seen) == {(4,)}
    whole = jaxbind.bind(reversing(lib, which), linear=True, vectorized=True)
    whole.def_transpose(lambda ct: seen.append(ct.shape) or ct[..., ::-1])
    np.testing.assert_array_equal(jax.vjp(whole, x)[1](w)[0], w[..., ::-1])
    assert seen[-1] == (2, 3, 4)


def test_rules_of_elementwise_functions_get_whole_arrays(lib, x64):
    seen = []
    f = jaxbind.bind(Kernel(lib.halved, "()->()", args="double x"))
    f.def_jvp(lambda p, t: seen.append(t[0].shape) or t[0] / 2)
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(jax.jvp(f, (x,), (x,))[1], x / 2)
    assert seen == [(2, 3)]


# What belongs to the kernel -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, text",
    [
        ({"order": "F"}, r"order= belongs to the Kernel itself; Kernel\(.*convention='Fortran'\)"),
        ({"out": jax.ShapeDtypeStruct((), float)}, "out= belongs to the Kernel itself; its signa"),
        ({"dtype": float}, r"dtype= belongs to the Kernel itself; give it to Kernel\(.*dtypes="),
    ],
)
def test_options_that_a_kernel_has_itself(options, text):
    kernel = returns_static("int")[0].function
    with pytest.raises(TypeError, match=f"^k: {text}"):
        jaxbind.bind(kernel, **options)


# Exceptions of Cython's functions -----------------------------------------------------------------

RAISES = r"""
extern int PyGILState_Ensure(void);
extern void PyGILState_Release(int);
extern void *PyExc_ValueError;
extern void PyErr_SetString(void *, const char *);

double root(double x) {  /* as `cdef double root(double x) except? -1 nogil` in Cython */
  if (x >= 0) return x / 2;
  int state = PyGILState_Ensure();
  PyErr_SetString(PyExc_ValueError, "negative!");
  PyGILState_Release(state);
  return -1;
}
"""


@pytest.fixture(scope="module")
def raises(tmp_path_factory):
    """The capsule that a Cython module's ``__pyx_capi__`` has for such a function."""
    folder = tmp_path_factory.mktemp("raises")
    (folder / "raises.c").write_text(RAISES)
    subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", "raises.c", "-o", "raises.so"], cwd=folder, check=True
    )
    lib = ctypes.CDLL(str(folder / "raises.so"))
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    name = ctypes.create_string_buffer(b"double (double)")
    capsule = make(ctypes.cast(lib.root, ctypes.c_void_p), name, None)
    yield capsule
    del lib, name


def test_the_first_exception_of_several_iterations_is_told(raises, x64):
    """The loop does not go on with an exception set, which Python calls a SystemError."""
    f = jaxbind.bind(Kernel(raises, name="root"))
    for x in ([-1.0, -2.0, -3.0], [-1.0, 2.0, 3.0], [1.0, -2.0, -3.0]):
        with pytest.raises(ValueError, match="^negative!$") as caught:
            f.function(np.array(x))
        assert caught.value.__cause__ is None and caught.value.__context__ is None
        with pytest.raises(Exception, match="ValueError: negative!"):
            jax.block_until_ready(f(np.array(x)))


@pytest.mark.parametrize("threads", [1, 0])
@pytest.mark.parametrize("route", ["eager", "asynchronous", "vmap of a program"])
def test_a_cython_function_raises(raises, route, threads, x64):
    f = jaxbind.bind(Kernel(raises, name="root"), threads=threads)
    call = {
        "eager": f,
        "asynchronous": jax.jit(lambda x: f(x + jnp.sort(jnp.sin(jnp.arange(3e5)))[:1] * 0)),
        "vmap of a program": jax.jit(jax.vmap(lambda x: f(x) + 1)),
    }[route]
    x = np.linspace(0, 4, 100_000)
    shift = 1 if "program" in route else 0
    for _ in range(3):
        np.testing.assert_array_equal(call(x), x / 2 + shift)
        for bad in (-x - 1, np.where(x > 3.99, -1, x)):
            with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="Error: negative!"):
                jax.block_until_ready(call(bad))
    with pytest.raises(ValueError, match="negative!"):
        f.function(-x - 1)


def test_f2pys_pointer_to_a_function_is_a_subroutine(raises):
    """It writes the result into its first argument: called as a function it would crash."""
    del raises  # which has said what PyCapsule_New takes

    class Fortran:
        _cpointer = ctypes.pythonapi.PyCapsule_New(64, None, None)
        __name__ = "hyp"

    with pytest.raises(
        TypeError, match="hyp: f2py's pointer to a Fortran function is a subroutine"
    ):
        Kernel(Fortran(), "()->()", convention="Fortran", args="a -> double")


def test_a_kernel_cannot_tell_the_size_of_its_result():
    with pytest.raises(
        ValueError, match=r"Kernel f: core dimension p .* Bind a Python function wi"
    ):
        Kernel(1, "(n),(m)->(p)", args="x, k, out, int n, int m, int p", name="f")


@pytest.mark.parametrize("name", ["out", "data", "n"])
def test_inout_names_inputs(name):
    with pytest.raises(ValueError, match=rf"inout= names {name}, which is no input.*\(x\)"):
        jaxbind.Kernel(1 << 20, "(n)->(n)", args="x, out, n, data", inout=name)


def test_what_is_no_function_of_numbers():
    """Without a signature: one that reads memory, and one that returns and writes."""
    libc = ctypes.CDLL(None)
    pointer = ctypes.POINTER(ctypes.c_double)
    for arguments, result in (([ctypes.c_char_p], ctypes.c_size_t), ([pointer], ctypes.c_double)):
        function = ctypes.CFUNCTYPE(result, *arguments)(("strlen", libc))
        with pytest.raises(TypeError, match="does not say that it is a function of numbers"):
            Kernel(function)


@pytest.mark.parametrize(
    ("args", "error", "said"),
    [
        ("double *x -> void", TypeError, "has no output, and says that it returns nothing"),
        ("double x, double *out -> double", TypeError, "returns float64, which is none of the 1"),
        ("double x,, double *out", ValueError, "nothing between two commas"),
    ],
)
def test_results_that_args_contradicts(args, error, said):
    with pytest.raises(error, match=said):
        Kernel(1 << 20, "()->()", args=args)
