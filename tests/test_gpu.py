"""Functions in programs on a GPU: called on the host, between copies.

They need one: ``JAX_PLATFORMS=cuda,cpu pytest tests/test_gpu.py``. ``JAXBIND_DEVICE=cpu`` tries the
tests themselves.
"""

import ctypes
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special

import jaxbind
from jaxbind import testing

PLATFORM = os.environ.get("JAXBIND_DEVICE", "gpu")
try:
    DEVICE = jax.devices(PLATFORM)[0]
except RuntimeError:
    pytest.skip("there is no GPU", allow_module_level=True)

LOWERED = "cpu" if PLATFORM == "cpu" else "cuda"
x = np.random.default_rng(0).normal(size=(4, 5))


@pytest.fixture(autouse=True)
def on_the_device(x64):
    with jax.default_device(DEVICE):
        yield


@jaxbind.bind("(n)->(n),()")
def both(v, *, power=2):
    return v**power, np.sum(v)


@both.def_vjp
def _(primals, cotangents, *, power=2):
    (v,), (ct, total) = primals, cotangents
    return ((0 if ct is None else ct * power * v ** (power - 1)) + (0 if total is None else total),)


@jaxbind.bind("(n)->(n)")
def cube(v):
    return v**3


cube.def_jvp(lambda p, t: 3 * p[0] ** 2 * t[0])
cube.def_vjp(lambda p, ct: (3 * p[0] ** 2 * ct,))
cube.vjp.def_vjp(lambda p, cts: ((6 * p[0][0] * p[1] * cts[0],), 3 * p[0][0] ** 2 * cts[0]))


def same(got, want):
    assert all(leaf.devices() == {DEVICE} for leaf in jax.tree.leaves(got))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_what_numpy_gives(wrap):
    same(wrap(both)(x[0]), (x[0] ** 2, np.sum(x[0])))
    same(wrap(lambda v: both(v, power=3))(x[0]), (x[0] ** 3, np.sum(x[0])))
    rows = wrap(jax.vmap(jax.vmap(both)))(np.stack([x, x]))
    same(rows, (np.stack([x, x]) ** 2, np.stack([[np.sum(r) for r in x]] * 2)))


def test_inside_a_program():
    """What comes before and after is on the stream of the program."""
    m = np.random.default_rng(1).normal(size=(300, 300)) / 20

    @jax.jit
    def program(a):
        for _ in range(4):
            a = jnp.sin(a @ m)
            a = cube(a) + 1
        return a

    want = m
    for _ in range(4):
        want = np.sin(want @ m) ** 3 + 1
    for _ in range(30):
        np.testing.assert_allclose(program(m), want, rtol=1e-9, atol=1e-9)


def test_derivatives():
    v = x[0]
    np.testing.assert_allclose(jax.grad(lambda v: jnp.sum(cube(v)))(v), 3 * v**2)
    np.testing.assert_allclose(jax.jacfwd(cube)(v), np.diag(3 * v**2))
    np.testing.assert_allclose(jax.jacrev(cube)(v), np.diag(3 * v**2))
    hessian = jax.hessian(lambda v: jnp.sum(cube(v)))
    with pytest.raises(TypeError, match="cube"):
        hessian(v)  # forward over reverse: no such rule
    twice = jax.jacrev(jax.grad(lambda v: jnp.sum(jnp.sin(cube(v)))))
    with jax.default_device(jax.devices("cpu")[0]):
        want = jax.hessian(lambda v: jnp.sum(jnp.sin(v**3)))(v)
    np.testing.assert_allclose(jax.jit(twice)(v), want, rtol=1e-12, atol=1e-12)
    gradient = jax.vmap(jax.grad(lambda v: both(v, power=3)[0].sum() + both(v)[1]))(x)
    np.testing.assert_allclose(gradient, 3 * x**2 + 1)


def test_control_flow():
    def body(carry, row):
        return carry + cube(row), both(row)[1]

    total, sums = jax.jit(lambda rows: jax.lax.scan(body, jnp.zeros(5), rows))(x)
    np.testing.assert_allclose(total, np.sum(x**3, axis=0))
    np.testing.assert_allclose(sums, np.sum(x, axis=1))
    chosen = jax.jit(lambda c, v: jax.lax.cond(c, cube, lambda v: v, v))
    same(chosen(True, x[0]), x[0] ** 3)
    same(chosen(False, x[0]), x[0])
    ended = jax.lax.while_loop(lambda v: jnp.sum(v) < 100, lambda v: 1 + cube(v), jnp.ones(5))
    same(ended, np.full(5, 730.0))
    same(jax.jit(jax.checkpoint(cube))(x[0]), x[0] ** 3)


DTYPES = """bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64
complex64 complex128 float8_e5m2 float8_e4m3fn""".split()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    same_back = jaxbind.bind(lambda v: v[::-1], "(n)->(n)")
    v = (np.arange(7) % 3 - (0 if "u" in dtype else 1)).astype(jnp.dtype(dtype))
    same(same_back(v), v[::-1])
    same(jax.jit(jax.vmap(same_back))(np.stack([v, v])), np.stack([v, v])[:, ::-1])


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1, 1, 1), (2, 3, 4)])
def test_shapes(shape):
    v = np.arange(float(np.prod(shape))).reshape(shape)
    doubled = jaxbind.bind(lambda v: 2 * v, "()->()", vectorized=True)
    same(doubled(v), 2 * v)
    same(jax.vmap(jaxbind.bind(lambda: np.ones(3), "->(3)"), axis_size=2)(), np.ones((2, 3)))


def test_compiled_functions():
    order = np.arange(5.0)
    jv = jaxbind.bind(scipy.special.jv)
    same(jax.jit(jv)(order, abs(x)), scipy.special.jv(order, abs(x)))
    same(jaxbind.bind(scipy.special.erfcx, threads=2)(x), scipy.special.erfcx(x))
    narrow = jaxbind.bind(scipy.special.spence, compute_dtype=float)
    given = abs(x).astype(np.float32)
    same(narrow(given), scipy.special.spence(given.astype(float)).astype(np.float32))
    matrices = np.random.default_rng(2).normal(size=(3, 4, 4))
    same(jaxbind.bind(np.linalg._umath_linalg.inv)(matrices), np.linalg.inv(matrices))
    libm = ctypes.CDLL(None)
    libm.hypot.argtypes, libm.hypot.restype = [ctypes.c_double] * 2, ctypes.c_double
    same(jaxbind.bind(jaxbind.Kernel(libm.hypot))(x, x[0]), np.hypot(x, x[0]))


def test_ways_to_bind():
    columns = jaxbind.bind(lambda m: np.cumsum(m, axis=0), "(m,n)->(m,n)", order="F")
    same(columns(x), np.cumsum(x, axis=0))
    same(jax.jit(jax.vmap(columns))(np.stack([x, x])), np.stack([np.cumsum(x, axis=0)] * 2))

    @jaxbind.bind("(n)->(n)", aliases={"v": 0})
    def in_place(v, out):
        out[...] = v + 1

    same(jax.jit(in_place, donate_argnums=0)(jnp.asarray(x[0])), x[0] + 1)
    same(jax.jit(lambda v: in_place(jnp.sin(v)) + v)(jnp.zeros(3)), np.ones(3))
    tree = jaxbind.bind(
        lambda parts: {"sum": parts["a"] + parts["b"]},
        out=lambda parts: {"sum": parts["a"]},
    )
    same(tree({"a": x, "b": 2 * x}), {"sum": x + 2 * x})
    solve = jaxbind.bind(scipy.linalg.solve, "(n,n),(n)->(n)")
    m = np.eye(5) + 0.1 * np.random.default_rng(3).normal(size=(5, 5))
    same(solve(m, x[0]), scipy.linalg.solve(m, x[0]))


def test_large_arrays():
    large = np.arange(6e6)
    halved = jaxbind.bind(lambda v: v / 2, "()->()", vectorized=True)
    same(jax.jit(halved)(large), large / 2)


def test_errors_name_the_binding():
    @jaxbind.bind("(n)->(n)")
    def failing(v):
        raise ArithmeticError(f"no root among {v.size}")

    with pytest.raises(RuntimeError, match=r"ArithmeticError: no root among 5\n.*in failing"):
        jax.block_until_ready(failing(x[0]))
    assert isinstance(jaxbind.last_exception(), ArithmeticError)
    with pytest.raises(RuntimeError, match="no root among 5"):
        jax.block_until_ready(jax.jit(failing)(x[0]))
    short = jaxbind.bind(lambda v: v[1:], "(n)->(n)", name="short")
    with pytest.raises(Exception, match=r"short returned float64\[4\]"):
        jax.block_until_ready(short(x[0]))
    kept = []
    keeping = jaxbind.bind(lambda v: kept.append(v) or v + 1, "(n)->(n)", name="keeping")
    with pytest.raises(Exception, match="keeping.* kept a view"):
        jax.block_until_ready(keeping(x[0]))
    calling = jaxbind.bind(lambda v: np.asarray(jnp.sin(v)), "(n)->(n)", name="calling")
    with pytest.raises(RuntimeError, match="JAX"):
        jax.block_until_ready(calling(x[0]))
    same(cube(x[0]), x[0] ** 3)  # and the device works on


def test_debugging():
    @jaxbind.bind("(n)->(n)")
    def forgetful(v, out):
        out[1:] = v[1:]

    with jaxbind.debug(), pytest.raises(Exception, match="forgetful"):
        jax.block_until_ready(forgetful(x[0]))


def test_operands_are_read_only():
    @jaxbind.bind("(n)->(n)")
    def writing(v):
        v += 1
        return v

    with pytest.raises(RuntimeError, match="read-only"):
        jax.block_until_ready(writing(x[0]))


@pytest.mark.parametrize("effect", ["ordered", "unordered"])
def test_effects(effect):
    seen = []
    log = jaxbind.bind(lambda v: seen.append(float(v)), effect=effect, name="log")

    @jax.jit
    def program(v):
        for k in range(5):
            log(v + k)
        return v

    jax.block_until_ready(program(1.0))
    jax.effects_barrier()
    assert (seen if effect == "ordered" else sorted(seen)) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_several_threads():
    wrong = []

    def work(k):
        with jax.default_device(DEVICE), jax.enable_x64(True):
            for _ in range(40):
                if not np.array_equal(jax.jit(cube)(x[0] + k), (x[0] + k) ** 3):
                    wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_export():
    checks = jaxbind.export_checks()
    bound = jaxbind.bind(np.square, "(n)->(n)", name="test_gpu.square")
    exported = jax.export.export(jax.jit(bound), platforms=(LOWERED,), disabled_checks=checks)
    again = jax.export.deserialize(exported(x[0]).serialize())
    same(again.call(jnp.asarray(x[0])), x[0] ** 2)


def test_an_implementation_of_its_own_comes_first():
    calls = []
    f = jaxbind.bind(lambda v: calls.append(1) or v + 1, "(n)->(n)")
    f.def_impl("cuda")(lambda v: v + 1)
    same(jax.jit(f)(x[0]), x[0] + 1)
    assert bool(calls) == (PLATFORM == "cpu")


@pytest.mark.skipif(PLATFORM == "cpu", reason="there it may")
def test_what_may_call_jax_cannot():
    f = jaxbind.bind(lambda v: np.asarray(jnp.sin(v)), "(n)->(n)", allow_jax=True, name="f")
    with pytest.raises(NotImplementedError, match=r"f: .* with allow_jax=True .*device_put"):
        f(x[0])
    with jax.default_device(jax.devices("cpu")[0]):
        np.testing.assert_allclose(f(x[0]), np.sin(x[0]))


def test_the_laws():
    testing.check(cube, max_examples=10, seed=0)
    wrong = jaxbind.bind(lambda v: v**3, "(n)->(n)", name="wrong")
    wrong.def_jvp(lambda p, t: 2 * p[0] ** 2 * t[0])
    with pytest.raises(testing.LawViolation, match="wrong violates `jvp`"):
        testing.check(wrong, max_examples=10, seed=0)


LEAVING = """
import jax, jax.numpy as jnp, numpy as np, time, jaxbind
slow = jaxbind.bind(lambda v: (time.sleep(0.2), v + 1)[1], "(n)->(n)")
run = jax.jit(lambda v: slow(slow(v)))
for _ in range(3):
    run(jnp.ones(3))
print("leaving")
"""


def test_leaving_with_calls_in_flight():
    done = subprocess.run(
        [sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "leaving\n"), done.stderr
