"""Who keeps what alive, and that memory does not grow."""

import functools
import gc
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from amount import every
from freed import collect, gone

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

x = np.arange(3.0)


class Scale:
    """A function that can be watched."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, v):
        return v * self.factor


class Rule(Scale):
    def __call__(self, primals, tangents):
        return tangents[0] * self.factor if isinstance(tangents, tuple) else tangents * self.factor


def bound(factor=2.0):
    function = Scale(factor)
    return jaxbind.bind(function, "(n)->(n)"), weakref.ref(function)


# A compiled program keeps its function ------------------------------------------------------------


@pytest.mark.parametrize("transform", [lambda f: f, jax.vmap, lambda f: lambda v: f(f(v))])
def test_a_compiled_function_outlives_its_binding(transform):
    f, function = bound()
    operand = x if transform is not jax.vmap else np.stack([x, -x])
    want = np.asarray(transform(lambda v: 2 * v)(jnp.asarray(operand)))
    compiled = jax.jit(transform(f)).lower(operand).compile()
    del f
    collect()
    for _ in range(3):
        np.testing.assert_array_equal(compiled(operand), want)
    assert function() is not None
    del compiled
    collect()
    assert gone(function)


def test_a_lowered_function_outlives_its_binding():
    f, function = bound()
    lowered = jax.jit(f).lower(x)
    del f
    collect()
    first, second = lowered.compile(), lowered.compile()
    del lowered
    collect()
    np.testing.assert_array_equal(first(x), 2 * x)
    del first
    collect()
    np.testing.assert_array_equal(second(x), 2 * x)
    del second
    collect()
    assert gone(function)


def test_a_jaxpr_outlives_its_binding():
    f, function = bound()
    jaxpr = jax.make_jaxpr(jax.vmap(f))(x[None])
    del f
    collect()
    run = jax.jit(jax.extend.core.jaxpr_as_fun(jaxpr))
    np.testing.assert_array_equal(run(x[None])[0], 2 * x[None])
    del jaxpr, run
    collect()
    assert gone(function)


def test_a_linear_function_outlives_its_binding():
    f, function = bound()
    rule = Rule(3.0)
    f.def_jvp(rule)
    rule = weakref.ref(rule)
    _, push = jax.linearize(f, x)
    compiled = jax.jit(lambda v, t: jax.jvp(f, (v,), (t,)))  # noqa: F821
    compiled = compiled.lower(x, x).compile()
    del f
    collect()
    np.testing.assert_array_equal(push(x), 3 * x)
    np.testing.assert_array_equal(compiled(x, x)[1], 3 * x)
    assert rule() is not None
    del push, compiled
    collect()
    assert gone(function, rule)


@pytest.mark.parametrize("kind", ["out", "static", "vmap rule", "transpose"])
def test_all_that_was_declared_outlives_the_binding(kind):
    class Tag:
        def __hash__(self):
            return 5

    def shape(v, **static):
        return v

    tag, options = Tag(), {}
    function = Scale(2.0)
    refs = [weakref.ref(function)]
    if kind == "static":
        f = jaxbind.bind(lambda v, *, tag: v * 2, "(n)->(n)")
        options = {"tag": tag}
        refs = [weakref.ref(tag), weakref.ref(f.function)]
    elif kind == "out":
        f = jaxbind.bind(function, out=shape)
    elif kind == "transpose":
        f = jaxbind.bind(function, "(n)->(n)", linear=True)
        f.def_transpose(Scale(2.0))
    else:
        f = jaxbind.bind(function, "(n)->(n)")
        f.def_vmap(lambda size, mapped, v: (2 * v, True))
    g = functools.partial(f, **options)
    compiled = jax.jit(lambda v: jax.vmap(lambda v: g(g(v)))(v[None])[0])  # noqa: F821
    compiled = compiled.lower(x).compile()
    grad = None
    if kind == "transpose":
        grad = jax.jit(jax.grad(lambda v: g(v).sum())).lower(x).compile()  # noqa: F821
    del f, g, tag, options, function, shape
    collect()
    np.testing.assert_array_equal(compiled(x), 4 * x)
    if grad is not None:
        np.testing.assert_array_equal(grad(x), [2, 2, 2])
    del compiled, grad
    collect()
    assert gone(*refs)


# Nothing else keeps it ----------------------------------------------------------------------------


def use(f):
    rule = Rule(2.0)
    f.def_jvp(rule)
    f.def_vjp(Rule(2.0))
    f(x), f(jnp.asarray(x)), jax.jit(f)(x), jax.vmap(f)(x[None])
    jax.jvp(f, (x,), (x,)), jax.grad(lambda v: f(v).sum())(x), jax.jit(jax.jacrev(f))(x)
    jax.jit(lambda v: jax.lax.scan(lambda c, _: (f(c), 0), v, None, 2))(x)
    jax.eval_shape(f, x), f.jvp((x,), (x,)), repr(f)
    return weakref.ref(rule)


def test_functions_and_rules_are_freed():
    f, function = bound()
    rule = use(f)
    del f
    collect()
    assert gone(function, rule)


def test_functions_are_freed_after_errors():
    f, function = bound()
    fails = jaxbind.bind(lambda v, keep=f: 1 / 0, "(n)->(n)")
    with pytest.raises(jax.errors.JaxRuntimeError):
        fails(x).block_until_ready()
    with pytest.raises(ValueError):
        f(1.0)
    other = jaxbind.bind(lambda v: 1 / 0, "(n)->(n)")
    with pytest.raises(jax.errors.JaxRuntimeError):  # `last_exception` holds the last one
        other(x).block_until_ready()
    del f, fails
    collect()
    assert gone(function)


def test_results_and_operands_are_freed():
    freed = []

    class Watched(np.ndarray):
        pass

    def function(v):
        result = (v + 1).view(Watched)
        weakref.finalize(result, freed.append, True)
        return result

    f = jax.jit(jaxbind.bind(function, "(n)->(n)"))
    for _ in range(5):
        f(x)
    assert len(freed) == 5
    fails = jaxbind.bind(lambda v: function(v)[:2], "(n)->(n)")
    with pytest.raises(jax.errors.JaxRuntimeError):
        fails(x).block_until_ready()
    gc.collect()
    assert len(freed) == 6


def test_references_balance():
    """Neither too many nor too few references to what is handed over at each call."""
    static, marker = object(), 1 << 70
    default = (1.5, "default")

    def function(v, *, tag, number, kept=default):
        assert tag is static and number == marker and kept is default
        return v

    f = jax.jit(functools.partial(jaxbind.bind(function, "(n)->(n)"), tag=static, number=marker))
    fails = jaxbind.bind(lambda v, *, tag: [][0], "(n)->(n)")

    def succeed_and_fail(repeats):
        for _ in range(20 * repeats):
            f(x)
        for _ in range(repeats):
            with pytest.raises(jax.errors.JaxRuntimeError):
                fails(x, tag=static).block_until_ready()
        gc.collect()

    succeed_and_fail(2)  # what the first calls put into caches
    things = static, default, function, None, np.dtype("float64"), ()
    before = [sys.getrefcount(t) for t in things]
    succeed_and_fail(50)
    after = [sys.getrefcount(t) for t in things]
    # None and the like are in everybody's hands: not one for each call is what counts
    assert all(abs(a - b) < 20 for a, b in zip(after, before, strict=True)), (before, after)


# Memory -------------------------------------------------------------------------------------------


def resident():
    """Resident memory in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def growth(work, repeats):
    """By how many Python objects, and MB, memory grows in the second half of ``repeats``."""
    measured = []
    for _ in range(2):
        for _ in range(repeats // 2):
            result = work()
        jax.block_until_ready(result)
        del result
        gc.collect()
        measured.append((sys.getallocatedblocks(), resident()))
    return np.subtract(*measured[::-1])


def fail_quietly(f, *operands):
    """jaxlib of JAX 0.9 raises its errors as ValueError at times."""
    try:
        jax.block_until_ready(f(*operands))
    except (jax.errors.JaxRuntimeError, ValueError):
        return
    raise AssertionError


big = np.ones(50_000)


def cycle(v):
    cycle = [v]
    cycle.append(cycle)
    return v


def raises(v):
    raise ValueError("x" * 100_000)


WORK = {
    "jit": (lambda f: functools.partial(jax.jit(f), x), lambda v: v + 1, {}, 10_000),
    "eager": (lambda f: functools.partial(f, x), lambda v: v + 1, {}, 4000),
    "vmap": (lambda f: functools.partial(jax.jit(jax.vmap(f)), np.ones((100, 3))),
             lambda v: v + 1, {}, 200),
    "out": (lambda f: functools.partial(jax.jit(f), x), lambda v, *, out: np.add(v, 1, out=out), {},
            10_000),
    "large": (lambda f: functools.partial(jax.jit(f), big), lambda v: v + 1, {}, 400),
    "converted": (lambda f: functools.partial(jax.jit(f), big), lambda v: v + 1,
                  {"compute_dtype": "float32"}, 400),
    "error": (lambda f: functools.partial(fail_quietly, jax.jit(f), x), raises, {}, 1000),
    "wrong": (lambda f: functools.partial(fail_quietly, jax.jit(f), big), lambda v: v[:-1], {},
              1000),
    "cycle": (lambda f: functools.partial(jax.jit(f), big), cycle, {}, 100),
    "wrong operands": (lambda f: functools.partial(refused, f), lambda v: v, {}, 200),
}  # fmt: skip


def refused(f):
    try:
        f(1.0)
    except ValueError:
        return
    raise AssertionError


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", every(2, WORK))
def test_memory_does_not_grow(kind):
    make, function, options, repeats = WORK[kind]
    work = make(jaxbind.bind(function, "(n)->(n)", **options))
    objects, megabytes = growth(work, repeats)
    assert objects < 0.4 * repeats  # one for each of the measured calls would be 0.5
    assert megabytes < 12  # the large arrays that a call would leave are 80 MB, in a cycle 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_bindings_that_come_and_go():
    watched = []

    def work():
        f, function = bound(float(len(watched)))
        watched.append(function)
        f.def_vjp(Rule(2.0))
        compiled = jax.jit(f).lower(x).compile()
        assert compiled(x)[1] == len(watched) - 1
        f(x), jax.vmap(f)(x[None]), jax.vjp(f, x)[1](x)

    assert growth(work, 24)[1] < 8
    assert sum(function() is not None for function in watched) < 5  # without clear_caches
    collect()
    assert not any(function() for function in watched)
