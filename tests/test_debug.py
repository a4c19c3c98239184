"""`jaxbind.debug`: results that are not written, operands that are changed, infinities."""

import ctypes
import ctypes.util
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from failing import heavy
from hypothesis import given
from hypothesis.extra import numpy as hnp

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

LIBM = ctypes.CDLL(ctypes.util.find_library("m"))

x = np.arange(12.0).reshape(3, 4)


def test_results_that_are_not_written():
    def partly(x, out):
        out[1:] = x[1:]

    f = jaxbind.bind(partly, "(n)->(n)")
    jax.block_until_ready(f(x))
    with jaxbind.debug(), pytest.raises(Exception, match=r"partly did not write element \[0, 0\]"):
        jax.block_until_ready(f(x))
    jax.block_until_ready(f(x))


@given(hnp.arrays(np.uint8, (3, 4)))
def test_the_pattern_itself_is_no_fault(values):
    values[0, 0] = 0xA5
    f = jaxbind.bind(lambda v: v, "(n)->(n)")
    with jaxbind.debug():
        np.testing.assert_array_equal(f(values), values)
        np.testing.assert_array_equal(jaxbind.bind(np.positive)(values), values)


def test_operands_that_are_changed():
    def naughty(x):
        ctypes.memset(x.ctypes.data, 1, x.nbytes)
        return 0 * x

    f = jaxbind.bind(naughty, "(n)->(n)")
    with jaxbind.debug(), pytest.raises(Exception, match=r"naughty changed argument 0 \(x\)"):
        jax.block_until_ready(f(jnp.array(x)))


@pytest.mark.parametrize("function", [np.log, lambda x: np.log(x)])
def test_results_that_are_not_finite(function):
    f = jaxbind.bind(function, *(() if isinstance(function, np.ufunc) else ("()->()",)))
    with np.errstate(all="ignore"), jaxbind.debug(finite=True):
        with pytest.raises(Exception, match=r"gave -inf in element \[0\] of its result"):
            jax.block_until_ready(f(np.array([0.0, 1.0])))
        np.testing.assert_array_equal(f(np.array([np.inf, 1.0])), [np.inf, 0])


def partly(x, out):
    out[1:] = x[1:]


@pytest.mark.parametrize(
    "options", [{"compute_dtype": "float32"}, {"order": "F"}, {"threads": 2}], ids=str
)
def test_results_are_watched_as_the_function_sees_them(options):
    f = jaxbind.bind(partly, "(n)->(n)", **options)
    with jaxbind.debug(), pytest.raises(Exception, match="partly did not write element"):
        jax.block_until_ready(f(x))


def test_operands_are_watched_as_the_function_sees_them():
    def naughty(v):
        ctypes.memset(v.ctypes.data, 1, v.nbytes)
        return 0 * v

    f = jaxbind.bind(naughty, "(n)->(n)", compute_dtype="float32")
    with jaxbind.debug(), pytest.raises(Exception, match=r"naughty changed argument 0 \(x|v\)"):
        jax.block_until_ready(f(x))


@pytest.mark.parametrize("donate", [(), (0,)])
def test_shared_memory_is_left_alone(donate):
    def increment(x, out):
        out[...] = x + 1

    f = jax.jit(jaxbind.bind(increment, "(n)->(n)", aliases={"x": 0}), donate_argnums=donate)
    with jaxbind.debug():
        np.testing.assert_array_equal(f(jnp.array(x)), x + 1)


@pytest.mark.parametrize("effect", ["unordered", "ordered"])
def test_a_function_with_an_effect_is_called_once(effect):
    calls = []

    def logs(v):
        calls.append(1)
        return np.full(3, 0xA5, np.uint8)

    f = jaxbind.bind(logs, out=jax.ShapeDtypeStruct((3,), np.uint8), effect=effect)
    with jaxbind.debug():
        np.testing.assert_array_equal(jax.jit(f)(1.0), 3 * [0xA5])
    jax.effects_barrier()
    assert len(calls) == 1


def test_calls_that_nobody_waits_for_are_checked():
    f = heavy(jaxbind.bind(partly, "(n)->(n)"))
    f(x[0])
    with pytest.raises(jax.errors.JaxRuntimeError, match="partly did not write"), jaxbind.debug():
        y = f(x[0])
    del y
    with pytest.raises(KeyError), jaxbind.debug():  # what is raised in the block comes first
        f(x[0])
        raise KeyError


def test_blocks_in_several_threads():
    f = jaxbind.bind(partly, "(n)->(n)")

    def finds():
        try:
            jax.block_until_ready(f(x))
        except jax.errors.JaxRuntimeError:
            return True
        return False

    inside, leave = threading.Event(), threading.Event()

    def other():
        with jaxbind.debug(finite=True):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    with jaxbind.debug():
        leave.set()
        thread.join()
        assert finds()
    assert not finds()


def test_arrays_of_more_dimensions_than_numpy_has():
    kernel = jaxbind.bind(jaxbind.Kernel(LIBM.cos, "()->()", args="double v -> double"))

    def ranks(rank):
        return jax.jit(lambda: jnp.sum(kernel(jax.lax.broadcast(1.0, (1,) * rank))))()

    with jaxbind.debug():
        for rank in (0, 64, 65, 100):
            np.testing.assert_allclose(ranks(rank), np.cos(1.0))
