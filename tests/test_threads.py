"""Many calls at once."""

import concurrent.futures
import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

x = np.arange(3.0)

# On threads other than the first, jaxlib raises its errors as ValueError (pure_callback's, too).
FAILURES = (jax.errors.JaxRuntimeError, ValueError)


def together(work, threads=8):
    """Run ``work(k)`` on threads that start at the same moment; raises what they raise."""
    gate = threading.Barrier(threads)

    def begin(k):
        gate.wait()
        with jax.enable_x64(True):
            return work(k)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, range(threads)))


def scaling(factor):
    return jaxbind.bind(lambda v: v * factor, "(n)->(n)")


def slow_enough(v):
    """Gives other threads the lock in the middle of it."""
    w = v.copy()
    for _ in range(3):
        w = np.sort(w * 1.0)[::-1] - 0.0
        threading.Event().wait(0)
    return w * 2 + len(v)


def written(v, *, out):
    np.copyto(out, slow_enough(v))


def twin(v):
    return np.sort(v)[..., ::-1] * 2 + v.shape[-1]


@pytest.mark.parametrize("style", ["returned", "written", "vmap", "converted", "eager"])
def test_one_compiled_function_from_eight_threads(style):
    f = jaxbind.bind(written if style == "written" else slow_enough, "(n)->(n)",
                     compute_dtype="float32" if style == "converted" else None)  # fmt: skip
    shape = (20, 50) if style == "vmap" else (50,)
    call = f if style == "eager" else jax.jit(f).lower(np.zeros(shape)).compile()

    def work(k):
        rng = np.random.default_rng(k)
        for _ in range(25):
            operand = rng.integers(0, 1000, shape) * 1.0
            np.testing.assert_array_equal(call(operand), twin(operand))

    together(work)


def test_different_shapes_and_bindings_from_eight_threads():
    """Compiling, calling, failing and freeing at the same time."""

    def work(k):
        for i in range(6):
            f = scaling(10 * k + i)
            operand = np.ones((k + 1, i + 1))
            np.testing.assert_array_equal(jax.vmap(f)(operand), operand * (10 * k + i))
            np.testing.assert_array_equal(jax.jit(f)(operand[0]), operand[0] * (10 * k + i))
            fails = jaxbind.bind(lambda v: v[:0], "(n)->(n)")
            with pytest.raises(FAILURES, match="returned float64.0."):
                fails(operand[0]).block_until_ready()
            del f

    together(work)


def test_errors_from_eight_threads_do_not_mix():
    def function(v):
        if v[0] % 2:
            raise ValueError(f"value {v[0]:.0f}")
        return v

    f = jax.jit(jaxbind.bind(function, "(n)->(n)"))

    def work(k):
        for i in range(20):
            operand = np.full(3, k * 100.0 + i)
            if i % 2:
                with pytest.raises(FAILURES, match=f"value {operand[0]:.0f}\n"):
                    f(operand).block_until_ready()
            else:
                np.testing.assert_array_equal(f(operand), operand)

    together(work)


def test_devices_and_many_sites_at_once():
    """XLA runs independent calls of one program, and devices, on threads of its own."""
    f = jaxbind.bind(slow_enough, "(n)->(n)")
    operand = np.random.default_rng(0).integers(0, 99, (16, 2000)) * 1.0

    @jax.jit
    def program(v):
        return [f(jnp.sort(row)) for row in v]

    for _ in range(3):
        np.testing.assert_array_equal(program(operand), twin(operand))
    results = []
    for k, device in enumerate(jax.devices()):
        results.append(jax.jit(jax.vmap(f))(jax.device_put(operand[k : k + 2], device)))
    for k, result in enumerate(results):
        np.testing.assert_array_equal(result, twin(operand[k : k + 2]))


def test_garbage_collection_inside_of_a_call():
    """A finaliser that calls the same program again, and collections in the middle of a call."""
    f = jax.jit(jaxbind.bind(lambda v: gc.collect() * 0 + v, "(n)->(n)"))
    for _ in range(3):
        np.testing.assert_array_equal(f(x), x)
    dropped = []

    def function(v):
        g = scaling(5.0)  # made, compiled and freed while another one runs on another thread
        dropped.append(weakref.ref(g))
        del g
        gc.collect()
        return v

    np.testing.assert_array_equal(jaxbind.bind(function, "(n)->(n)")(x), x)
    assert dropped[0]() is None


def test_stress():
    """Threads, devices and programs at once; ``python tests/stress.py --seconds 300`` is longer."""
    command = [sys.executable, Path(__file__).parent / "stress.py", "--seconds", "6"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 200


def test_caches_of_limited_size_are_filled_from_many_threads():
    """Making room takes two steps, between which another thread must not come."""
    from jaxbind._definition import kept

    class Slow(dict):
        def __iter__(self):
            found = super().__iter__()
            threading.Event().wait(1e-4)
            return found

        def pop(self, *args):
            found = super().pop(*args)
            threading.Event().wait(1e-4)
            return found

    cache = Slow()
    together(lambda k: [kept(cache, (k, i), i) for i in range(200)], threads=4)
    assert len(cache) == 256
