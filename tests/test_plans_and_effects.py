"""`def_plan`, `effect=`, `allow_jax=` and the guard against JAX, `last_exception`."""

import ctypes
import subprocess
import sys
import threading
import time
import traceback
import weakref

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from freed import collect, gone
from hypothesis import given
from hypothesis.extra import numpy as hnp
from jax.experimental import io_callback
from jax.sharding import NamedSharding, PartitionSpec

import jaxbind

x = np.arange(6.0).reshape(2, 3)


def vectors(*shape):
    return hnp.arrays(float, shape, elements=st.floats(-9, 9))


# Plans --------------------------------------------------------------------------------------------


def laplacian(n, *, shift):
    return scipy.sparse.diags([-1, 2 + shift, -1], [-1, 0, 1], shape=(n, n), format="csc")


@given(b=vectors(3, 5))
def test_a_factorisation_is_made_once(b):
    made = []

    def solve(b, *, shift, plan):
        return plan.solve(b)

    f = jaxbind.bind(solve, "(n)->(n)")

    @f.def_plan
    def _(b, *, shift):
        made.append((b.shape, b.dtype))
        return scipy.sparse.linalg.splu(laplacian(b.shape[0], shift=shift))

    with jax.enable_x64(True):
        run = jax.jit(lambda b: f(b, shift=0.5))
        for _ in range(3):
            got = run(b)
        want = np.linalg.solve(laplacian(5, shift=0.5).toarray(), b.T).T
        np.testing.assert_allclose(got, want, atol=1e-12)
        assert made == [((5,), np.dtype(float))]
        run(b[:, :4])
        assert made[1:] == [((4,), np.dtype(float))]


def test_devices_that_come_at_once_have_one_plan():
    made = []
    f = jaxbind.bind(lambda v, *, plan: v + plan, "(n)->(n)")

    @f.def_plan
    def _(v):
        time.sleep(0.05)
        made.append(v.shape)
        return 1

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("i",))
    rows = np.ones((2 * len(jax.devices()), 3), np.float32)
    split = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("i")))
    run = jax.jit(jax.vmap(f))
    for _ in range(2):
        np.testing.assert_array_equal(run(split), rows + 1)
    assert made == [(3,)]


def test_a_plan_is_released_with_its_program(x64):
    class Plan:
        pass

    kept = []

    def scaled(x, *, plan):
        return 2 * x

    f = jaxbind.bind(scaled, "(n)->(n)")

    @f.def_plan
    def _(x):
        plan = Plan()
        kept.append(weakref.ref(plan))
        return plan

    compiled = jax.jit(f).lower(x).compile()
    compiled(x)
    assert kept[0]() is not None
    del compiled, f
    collect()
    assert gone(kept[0])


def test_plans_are_refused():
    with pytest.raises(TypeError, match="has no keyword-only parameter plan"):
        jaxbind.bind(lambda x: x, "()->()").def_plan(lambda x: 1)
    with pytest.raises(TypeError, match="only functions in Python"):
        jaxbind.bind(np.sin).def_plan(lambda x: 1)


# Effects ------------------------------------------------------------------------------------------


@pytest.fixture(params=["ordered", "unordered"])
def effect(request):
    return request.param


def recorder(effect):
    seen = []

    def record(x):
        seen.append(float(x))
        return 2 * x

    return jaxbind.bind(record, "()->()", effect=effect), seen


def test_calls_are_neither_removed_nor_merged(effect):
    f, seen = recorder(effect)
    jax.jit(lambda x: (f(x), f(x), x)[2])(3.0)
    jax.effects_barrier()
    assert seen == [3, 3]


def test_effects_in_control_flow():
    f, seen = recorder("ordered")

    @jax.jit
    def program(x):
        x, _ = jax.lax.scan(lambda c, _: (f(c), None), x, None, length=3)
        return jax.lax.cond(x > 5, lambda x: f(x) + 1, lambda x: x, x)

    assert program(1.0) == 17
    jax.effects_barrier()
    assert seen == [1, 2, 4, 8]


def test_effects_and_loop_dimensions():
    f, seen = recorder("unordered")
    np.testing.assert_array_equal(f(x), 2 * x)
    np.testing.assert_array_equal(jax.vmap(f)(x[0]), 2 * x[0])
    assert sorted(seen) == sorted([*x.ravel(), *x[0]])


def test_effects_are_not_differentiated_without_rules(effect):
    f, _ = recorder(effect)
    with pytest.raises(TypeError, match=r"record: a function with an effect (.|\n)*stop_gradient"):
        jax.grad(f)(1.0)
    assert jax.grad(lambda x: x * f(jax.lax.stop_gradient(x)))(3.0) == 6
    linear = jaxbind.bind(lambda x: 2 * x, "()->()", effect=effect, linear=True)
    linear.def_transpose(lambda ct: 2 * ct)
    with pytest.raises(TypeError, match="must not call it once more"):
        jax.jvp(linear, (1.0,), (1.0,))


@pytest.mark.parametrize("traced", [False, True])
def test_rules_of_effects(effect, traced):
    seen = []

    def record(x, n):
        seen.append(float(x))
        return x**3 * n, 7

    f = jaxbind.bind(record, "(),()->(),()", dtype=(float, np.int32), nondiff="n", effect=effect)
    f.def_jvp(lambda p, t: (3 * p[0] ** 2 * p[1] * t[0], t[1]), traced=traced)
    f.def_vjp(lambda p, ct: (3 * p[0] ** 2 * p[1] * ct[0], None), traced=traced)

    def value(x):
        return f(x, 2)[0]

    assert jax.jvp(jax.jit(value), (2.0,), (0.5,)) == (16.0, 12.0)
    assert jax.grad(jax.jit(value))(3.0) == 54
    assert jax.jit(jax.value_and_grad(lambda x: value(x) + x))(3.0) == (57.0, 55.0)
    jax.effects_barrier()
    assert seen == [2.0, 3.0, 3.0]
    np.testing.assert_allclose(jax.vmap(jax.grad(value))(x[0]), 6 * x[0] ** 2)
    np.testing.assert_allclose(jax.vmap(f, (0, None))(x[0], 2)[0], 2 * x[0] ** 3)


def test_effects_keep_the_contract(effect):
    def written(x, out):
        out[...] = x + 1

    def wrong(x):
        return np.zeros(7)

    def failing(x):
        raise ValueError("no")

    f = jaxbind.bind(written, "(n)->(n)", effect=effect)
    np.testing.assert_array_equal(f(x), x + 1)
    for function, text in ((wrong, "its declared shape and dtype"), (failing, "raised in failing")):
        with pytest.raises(Exception, match=text):
            jax.block_until_ready(jaxbind.bind(function, "(n)->(n)", effect=effect)(x[0]))
            jax.effects_barrier()
    with pytest.raises(ValueError, match="effect='often' is not understood"):
        jaxbind.bind(written, "(n)->(n)", effect="often")


def test_effects_see_ieee_numbers_and_are_exported(effect):
    tiny = np.array([1e-310, 4e-308])
    halve = jaxbind.bind(lambda x: x / 2, "()->()", effect=effect, name=f"halve {effect}")
    with jax.enable_x64(True):
        np.testing.assert_array_equal(halve(tiny), tiny / 2)
        exported = jax.export.export(jax.jit(halve), disabled_checks=jaxbind.export_checks())(tiny)
        again = jax.export.deserialize(exported.serialize())
        np.testing.assert_array_equal(again.call(tiny), tiny / 2)


def test_effects_are_watched(effect):
    calls_jax = jaxbind.bind(lambda x: np.asarray(jnp.sin(x)), "()->()", effect=effect)
    with pytest.raises(Exception, match="bind it with allow_jax=True"):
        jax.block_until_ready(calls_jax(1.0))
    writes_nothing = jaxbind.bind(lambda x, *, out: None, "(n)->(n)", effect=effect)
    with jaxbind.debug(), pytest.raises(Exception, match="did not write element"):
        jax.block_until_ready(writes_nothing(x[0]))
    jax.effects_barrier()


def test_effects_of_kernels_and_in_nested_loops(effect):
    f, seen = recorder(effect)

    def twice(x):
        return jax.lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0]

    np.testing.assert_array_equal(jax.jit(jax.vmap(twice))(x[0]), 4 * x[0])
    jax.effects_barrier()
    assert seen == [0, 1, 2, 0, 2, 4]
    cosine = ctypes.CDLL(None).cos
    cosine.restype, cosine.argtypes = ctypes.c_double, [ctypes.c_double]
    bound = jaxbind.bind(jaxbind.Kernel(cosine), effect=effect)
    np.testing.assert_allclose(jax.jit(jax.vmap(bound))(x[0]), np.cos(x[0]), rtol=1e-6)


def test_effects_on_several_devices():
    f, seen = recorder("unordered")
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("i",))
    count = len(jax.devices())
    rows = jax.device_put(jnp.arange(2.0 * count), NamedSharding(mesh, PartitionSpec("i")))
    with pytest.raises(NotImplementedError, match="an effect happens once, on one device"):
        jax.jit(jax.vmap(f))(rows)
    each = jax.shard_map(
        jax.vmap(f), mesh=mesh, in_specs=PartitionSpec("i"), out_specs=PartitionSpec("i")
    )
    np.testing.assert_array_equal(jax.jit(each)(rows), 2 * np.arange(2.0 * count))
    with pytest.raises(NotImplementedError, match="between which there is no order"):
        ordered = jax.vmap(recorder("ordered")[0])
        split = PartitionSpec("i")
        jax.jit(jax.shard_map(ordered, mesh=mesh, in_specs=split, out_specs=split))(rows)
    jax.effects_barrier()
    assert sorted(seen) == list(range(2 * count))


def called_by_jax(effect, seen):
    """JAX's own host call."""

    def note(x):
        seen.append(float(x))
        return x

    return lambda x: io_callback(note, jax.typeof(x), x, ordered=effect == "ordered")


def test_branches_that_are_not_taken_have_no_effect(effect):
    """`vmap` would select among the results of all branches: refused, as for JAX's host calls."""
    f, seen = recorder(effect)

    def branch(f):
        return jax.vmap(lambda p, x: jax.lax.cond(p, f, lambda x: x, x))

    def loop(f):
        return jax.vmap(lambda x: jax.lax.while_loop(lambda x: x < 9, f, x))

    flags, values = np.array([True, False]), np.ones(2)
    for program, operands in ((branch, (flags, values)), (loop, (values,))):
        refused = []
        for function in (f, called_by_jax(effect, seen)):
            with pytest.raises(Exception, match=r"(?i)io effect") as caught:
                jax.jit(program(function))(*operands)
            refused.append((caught.type, str(caught.value)))
        assert refused[0] == refused[1]
    jax.effects_barrier()
    assert seen == []


@pytest.mark.parametrize("first", ["bound", "JAX's"])
def test_order_among_all_host_calls(first):
    f, seen = recorder("ordered")
    g = called_by_jax("ordered", seen)
    one, other = (f, g) if first == "bound" else (g, f)

    @jax.jit
    def program(x):
        one(x), other(x + 1), one(x + 2)
        return jax.lax.scan(lambda c, _: ((one(c), other(c + 1), c + 2)[2], None), x + 3, length=2)

    program(0.0)
    jax.jit(other)(7.0)
    one(8.0)
    jax.effects_barrier()
    assert seen == list(range(9))


@pytest.mark.parametrize("out", [(), None])
def test_functions_that_are_called_for_their_effect_alone(out, effect):
    seen = []
    write = jaxbind.bind(lambda x: seen.append(x.tolist()), out=out, effect=effect)

    def step(c, _):
        write(c)
        return c + 1, None

    def square(x):
        write(x)
        return x**2

    assert write(0.0) == out
    assert jax.jit(write)(1.0) == out
    assert jax.vmap(write)(jnp.arange(2.0, 4.0)) == out
    assert jax.lax.scan(step, 4.0, length=2)[0] == 6
    assert jax.jit(jax.grad(square))(6.0) == 12
    write(jnp.ones((2, 1)))
    jax.effects_barrier()
    assert seen == [0, 1, 2, 3, 4, 5, 6, [[1], [1]]]


def test_results_of_functions_without_any(effect):
    f = jaxbind.bind(lambda x: x, effect=effect)
    with pytest.raises(
        Exception, match=r"returned float32\[\], but it is declared without results"
    ):
        jax.block_until_ready(f(1.0))
        jax.effects_barrier()
    with pytest.raises(TypeError, match="or effect='unordered' or 'ordered' if it is called for"):
        jaxbind.bind(lambda x: None, out=())(1.0)
    with pytest.raises(TypeError, match="neither a signature nor out= is given"):
        jaxbind.bind(lambda x: None)


def test_effects_in_errors(effect):
    """They have names, and none has happened where its derivative is refused."""
    f, seen = recorder(effect)
    with pytest.raises(TypeError, match="a function with an effect"):
        jax.grad(f)(1.0)
    assert seen == []
    with pytest.raises(NotImplementedError, match="effect of a foreign function]"):
        jax.grad(jax.checkpoint(lambda x: x * f(jax.lax.stop_gradient(x))))(1.0)


# JAX inside a function ----------------------------------------------------------------------------


def sine(x):
    return np.asarray(jnp.sin(x))


def test_calling_jax_raises_at_once():
    f = jaxbind.bind(sine, "(n)->(n)")
    inner = jaxbind.bind(lambda x: x + 1, "(n)->(n)")
    nested = jaxbind.bind(lambda x: np.asarray(inner(x)), "(n)->(n)")
    jitted = jax.jit(jnp.cos)
    jitted(x[0])
    cached = jaxbind.bind(lambda x: np.asarray(jitted(x)), "(n)->(n)")
    for g in (f, nested, cached, jax.jit(f), jax.vmap(f)):
        operand = x if g not in (f, nested, cached) else x[0]
        with pytest.raises(Exception, match=r"called JAX .* bind it with allow_jax=True"):
            jax.block_until_ready(g(operand))
    assert jnp.sin(0.0) == 0  # the guard is gone


def test_a_function_that_was_quick_so_far():
    def mostly_quick(x):
        return np.asarray(jnp.sin(x)) if x[0] > 5 else x

    f = jaxbind.bind(mostly_quick, "(n)->(n)")
    for _ in range(20):
        jax.block_until_ready(f(x[0]))
    with pytest.raises(Exception, match="bind it with allow_jax=True"):
        jax.block_until_ready(f(x[0] + 6))
    planned = jaxbind.bind(lambda x, *, plan: x, "(n)->(n)")
    planned.def_plan(lambda x: jnp.zeros(3))
    with pytest.raises(Exception, match="bind it with allow_jax=True"):
        jax.block_until_ready(planned(x[0]))
    with pytest.raises(ValueError, match="cannot be exported: with allow_jax=True"):
        jax.export.export(jax.jit(jaxbind.bind(sine, "(n)->(n)", allow_jax=True, name="sine")))(x)


def test_allow_jax():
    f = jaxbind.bind(sine, "(n)->(n)", allow_jax=True)
    np.testing.assert_allclose(f(x), np.sin(x), rtol=1e-6)
    scanned = jax.jit(lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=20)[0])
    want = x
    for _ in range(20):
        want = np.sin(want)
    np.testing.assert_allclose(scanned(x), want, rtol=1e-5)


def test_allow_jax_with_many_executions_queued():
    f = jax.jit(lambda x: jaxbind.bind(sine, "(n)->(n)", allow_jax=True, name="s")(x) + jnp.sort(x))
    results = [f(x) for _ in range(100)]
    jax.block_until_ready(results)
    np.testing.assert_allclose(results[-1], np.sin(x) + x, rtol=1e-6)


QUEUED = """
import sys
import jax, jax.numpy as jnp, numpy as np, jaxbind
f = jaxbind.bind(lambda x: np.asarray(jnp.sin(x)), "(n)->(n)", allow_jax=True)
program = jax.jit(lambda x: f(x) + 1)
a = jnp.ones((300, 300)) / 300
later = jax.jit(lambda x: f(x) + a[0, :3])
for call in (f, program, program.lower(jnp.ones(3)).compile(), later):
    for count in (40, 400):
        results = [call((a @ a)[0, :3]) for _ in range(count)]
        jax.block_until_ready(results)
y = program((a @ a @ a)[0, :3])  # and what waits for it
for _ in range(100):
    y = y + 1
print(y[0] - 101 - np.sin(a[0, 0]))
"""


def test_allow_jax_with_operands_that_are_not_there_yet():
    """Such programs ran on the runtime's threads, while the next ones took all places there."""
    done = subprocess.run(
        [sys.executable, "-c", QUEUED], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert abs(float(done.stdout)) < 1e-4


def test_allow_jax_on_several_devices_is_refused():
    mesh = jax.make_mesh((2,), ("i",))
    place = jax.NamedSharding(mesh, jax.P("i"))
    f = jaxbind.bind(sine, "(n)->(n)", allow_jax=True)
    with pytest.raises(NotImplementedError, match=r"allow_jax=True works on one device"):
        jax.jit(f)(jax.device_put(x, place))


# Threads of Python functions ----------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_python_functions_on_threads(threads, x64):
    seen = set()

    def inverse(a):
        seen.add(threading.get_ident())
        return np.linalg.inv(a)

    a = np.random.default_rng(0).normal(size=(7, 40, 12, 12))
    f = jaxbind.bind(inverse, "(n,n)->(n,n)", threads=threads)
    np.testing.assert_array_equal(jax.jit(f)(a), np.linalg.inv(a))
    assert threads != 1 or len(seen) == 1
    narrow = jax.jit(jax.vmap(f, in_axes=2, out_axes=1))(np.moveaxis(a, 0, 2).astype(np.float32))
    np.testing.assert_allclose(narrow, np.moveaxis(np.linalg.inv(a), 0, 1), rtol=1e-2, atol=1e-2)


def test_errors_on_threads(x64):
    def picky(x):
        total = sum(range(20_000))
        if x == 33:
            raise ValueError(f"not {x}, {total}")
        return x

    f = jaxbind.bind(picky, "()->()", threads=0)
    with pytest.raises(Exception, match=r"not 33.0(.|\n)*in iteration 33 of 64"):
        jax.block_until_ready(f(np.arange(64.0)))
    np.testing.assert_array_equal(f(np.arange(30.0)), np.arange(30.0))


# Exceptions ---------------------------------------------------------------------------------------


class Lost(Exception):
    pass


def test_the_exceptions_of_others():
    def inner(v):
        raise KeyError("inner")

    def outer(v):
        try:
            inner(v)
        except KeyError as error:
            raised = ValueError("outer")
            raised.where = {"v": v, "all": [v]}
            raise raised from error

    with pytest.raises(jax.errors.JaxRuntimeError):
        jaxbind.bind(outer, "(n)->(n)")(x[0])
    error = jaxbind.last_exception()
    assert error.where["v"].flags.owndata and error.where["all"][0].flags.owndata
    frames = error.__cause__.__traceback__
    while frames.tb_next:
        frames = frames.tb_next
    assert frames.tb_frame.f_locals == {}
    kept = []

    def keeps_and_fails(v):
        kept.append(v)
        raise ValueError

    with pytest.raises(jax.errors.JaxRuntimeError):
        jaxbind.bind(keeps_and_fails, "(n)->(n)")(x[0])
    assert kept[0].base is not None  # memory of its own
    np.testing.assert_array_equal(kept[0], x[0])
    silent = jaxbind.bind(lambda v: [][0], "(n)->(n)")
    for call in (silent, jax.vmap(silent)):
        with pytest.raises(jax.errors.JaxRuntimeError) as caught:
            jax.block_until_ready(call(x))
        assert isinstance(caught.value.__cause__, IndexError)
    with pytest.raises(jax.errors.JaxRuntimeError):
        jaxbind.bind(lambda v: [][0], "(n)->(n)")(x[0])
    with pytest.raises(ValueError, match="do not broadcast") as caught:
        jaxbind.bind(lambda a, b: a + b, "(),()->()")(np.ones(3), np.ones(4))
    assert caught.value.__cause__ is None


def test_the_exception_itself():
    def lose(x):
        raise Lost("here", x)

    f = jaxbind.bind(lose, "()->()")
    with pytest.raises(Exception, match="Lost") as caught:
        f(1.5)
    assert isinstance(jaxbind.last_exception(), Lost)
    assert caught.value.__cause__ is jaxbind.last_exception()
    assert jaxbind.last_exception().args[1] == 1.5
    assert "lose" in {
        frame.name for frame in traceback.extract_tb(caught.value.__cause__.__traceback__)
    }
    with pytest.raises(Exception, match="Lost"):
        jax.block_until_ready(jax.jit(f)(2.5))
    assert jaxbind.last_exception().args[1] == 2.5


@pytest.mark.parametrize("effect", ["unordered", "ordered"])
@pytest.mark.parametrize("kind", ["cond", "while"])
def test_effects_that_are_not_due_do_not_happen(effect, kind):
    """Under ``vmap`` both branches of a `cond` are computed, and a loop runs until all have ended."""
    log = []
    f = jaxbind.bind(lambda x: log.append(float(x)) or x + 1, "()->()", effect=effect)

    def branch(p, x):
        return jax.lax.cond(p, f, lambda x: x, x)

    def loop(p, x):
        return jax.lax.while_loop(lambda x: x < 3 * p, f, x)

    program = jax.jit(jax.vmap({"cond": branch, "while": loop}[kind]))
    with pytest.raises(Exception, match="IO effects? not supported in"):
        program(np.array([True, False, True]), np.arange(3.0))
    assert not log
    one = jax.jit({"cond": branch, "while": loop}[kind])
    jax.block_until_ready([one(True, 0.0), one(False, 5.0)])
    jax.effects_barrier()
    assert sorted(log) == ([0.0] if kind == "cond" else [0.0, 1.0, 2.0])


def test_ordered_effects_are_so_among_jaxs_own():
    log = []
    f = jaxbind.bind(lambda x: log.append(float(x)) or x, "()->()", effect="ordered")

    def jaxs(x):
        jax.experimental.io_callback(lambda v: log.append(float(v)), None, x, ordered=True)

    @jax.jit
    def program(x):
        results = f(x + 1)
        jaxs(x + 2)
        results += f(x + 3)
        jaxs(x + 4)
        return results

    for _ in range(3):
        jax.block_until_ready(program(0.0))
    jax.effects_barrier()
    assert log == 3 * [1.0, 2.0, 3.0, 4.0]


def test_errors_of_jax_name_effects():
    f = jaxbind.bind(lambda x: x, "()->()", effect="ordered")
    with pytest.raises(NotImplementedError, match="ordered effect of a foreign") as caught:
        jax.grad(jax.checkpoint(lambda x: f(jax.lax.stop_gradient(x)) * x))(1.0)
    assert " at 0x" not in str(caught.value)
