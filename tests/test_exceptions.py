"""Exceptions in a function: who is named, what is shown, and that calls go on afterwards."""

import builtins
import collections
import gc
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from amount import every
from failing import ROUTES, elementwise, heavy, message, routes, x

import jaxbind
from jaxbind import _reads

pytestmark = pytest.mark.usefixtures("x64")

HERE = __file__


# Exceptions in a function -------------------------------------------------------------------------


def deeper(v):
    raise ValueError("the flux capacitor is empty: ∇ü")  # RAISED HERE


def careless(v):
    return deeper(v)


def line_of(marker):
    with open(HERE) as file:
        return next(n for n, line in enumerate(file, 1) if marker in line)


@routes
def test_an_exception_in_the_function(route):
    text = message(ROUTES[route](elementwise(careless)), x)
    first, *rest = text.splitlines()
    assert first == "INTERNAL: ValueError: the flux capacitor is empty: ∇ü"
    assert rest[0] == "  raised in careless"
    assert rest[1] == "  called with v: float64[3]"
    if "vmap" in route:
        assert rest[2] == "  in iteration 0 of 2 over its loop dimensions"
    frames = re.findall(r'File "(.*)", line (\d+), in (\w+)', text)
    assert [(f, n) for f, _, n in frames] == [(HERE, "careless"), (HERE, "deeper")]
    assert int(frames[1][1]) == line_of("RAISED" + " HERE")
    assert "return deeper(v)" in text and text.count("Traceback") == 1
    assert "_pycall" not in text and "jaxbind/" not in text


@routes
def test_calls_go_on_after_an_exception(route):
    fail = [True]

    def sometimes(v):
        if fail[0]:
            raise ValueError("sometimes")
        return v + 1

    call = ROUTES[route](elementwise(sometimes))
    good = ROUTES[route](lambda v: v + 1) if route != "ahead of time" else lambda v: v + 1
    for _ in range(2):
        fail[0] = True
        assert "ValueError: sometimes" in message(call, x)
        fail[0] = False
        jax.tree.map(np.testing.assert_array_equal, call(x), good(jnp.asarray(x)))


def test_operands_are_shown_as_the_function_sees_them():
    f = jaxbind.bind(
        lambda a, b, c: 1 / 0, "(m,n),(),(k)->()", compute_dtype="float32", nondiff="b"
    )
    text = message(f, np.ones((2, 3)), np.int8(1), np.ones((5, 4), complex))
    assert "  called with a: float32[2,3], b: int8[], c: complex64[4]\n" in text
    assert "  in iteration 0 of 5 over its loop dimensions\n" in text
    g = jaxbind.bind(lambda s, t: 1 / 0, out=lambda s, t: t)
    text = message(g, {"a": x, "b": [x, True]}, x)
    assert "called with s['a']: float64[3], s['b'][0]: float64[3], s['b'][1]: bool[], t: fl" in text
    h = jaxbind.bind(lambda *v: 1 / 0, out=lambda *v: v[0])
    assert "called with operand 0: float64[3], operand 1: float64[]\n" in message(h, x, 1.0)
    assert "called with no operands" in message(
        jaxbind.bind(lambda: 1 / 0, out=jax.ShapeDtypeStruct((), float))
    )


def test_the_iteration_is_named():
    calls = []

    def third(v):
        calls.append(v)
        if len(calls) == 5:
            calls.clear()
            raise ValueError("fifth")
        calls[-1] = None
        return v

    text = message(jax.vmap(jax.vmap(elementwise(third))), np.ones((2, 4, 3)))
    assert "in iteration 4 of 8 over its loop dimensions" in text


def test_causes_notes_and_groups_are_shown():
    def chained(v):
        try:
            {}["key"]
        except KeyError as error:
            raise ValueError("outer") from error

    def implicit(v):
        try:
            {}["key"]
        except KeyError:
            raise ValueError("outer")  # noqa: B904

    def noted(v):
        error = ValueError("outer")
        error.add_note("a note of mine")
        raise error

    def grouped(v):
        raise ExceptionGroup("outer", [ValueError("one"), TypeError("two")])

    assert "direct cause of the following exception" in message(elementwise(chained), x)
    assert "During handling of the above exception" in message(elementwise(implicit), x)
    assert "KeyError: 'key'" in message(elementwise(implicit), x)
    assert "a note of mine" in message(elementwise(noted), x)
    text = message(elementwise(grouped), x)
    assert "ValueError: one" in text and "TypeError: two" in text


def test_frames_of_libraries_are_the_users_own():
    text = message(elementwise(np.linalg.inv), x)
    assert "INTERNAL: LinAlgError: 1-dimensional array given" in text and "raised in inv" in text
    assert "_linalg.py" in text


@routes
def test_exceptions_of_rules_name_the_rule(route):
    f = elementwise(lambda v: v, name="f")
    f.def_jvp(lambda p, t: 1 / 0)
    f.def_vjp(lambda p, ct: 1 / 0)
    text = message(ROUTES[route](lambda v: jax.jvp(f, (v,), (v,))[1]), x)
    assert "ZeroDivisionError: division by zero\n  raised in f.jvp" in text
    text = message(ROUTES[route](jax.grad(lambda v: f(v).sum())), x)
    assert "ZeroDivisionError: division by zero\n  raised in f.vjp" in text
    assert "called with v: float64[3], cotangents: float64[3]" in text


# Awkward exceptions -------------------------------------------------------------------------------


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Interrupts(Exception):
    def __str__(self):
        raise KeyboardInterrupt


class NotText(Exception):
    def __str__(self):
        return 3


AWKWARD = {
    "empty": (ValueError(), "INTERNAL: ValueError\n"),
    "unicode": (ValueError("∇ü \U0001f600 日本"), "ValueError: ∇ü \U0001f600 日本\n"),
    "surrogate": (ValueError("a\udc80b"), "ValueError: a?b\n"),
    "nul": (ValueError("a\0b"), "ValueError: a?b\n"),
    "lines": (ValueError("first\nsecond\n\nthird"), "ValueError: first\nsecond\n\nthird\n"),
    "percent": (ValueError("%s %n {0} \\x"), "ValueError: %s %n {0} \\x\n"),
    "no text": (NoText(), "NoText: <unprintable>\n"),
    "not text": (NotText(), "NotText: <unprintable>\n"),
    "interrupts": (Interrupts(), "Interrupts: <unprintable>\n"),
    "several": (ValueError("a", 2), "ValueError: ('a', 2)\n"),
    "key": (KeyError("k"), "KeyError: 'k'\n"),
    "system": (OSError(2, "none", "path"), "FileNotFoundError: [Errno 2] none: 'path'\n"),
    "syntax": (SyntaxError("bad", ("f.py", 1, 2, "text")), "SyntaxError: bad (f.py, line 1)\n"),
    "decode": (UnicodeDecodeError("utf8", b"\xff", 0, 1, "r"), "UnicodeDecodeError: 'utf8' codec"),
    "assertion": (AssertionError(), "INTERNAL: AssertionError\n"),
    "stop": (StopIteration(3), "StopIteration: 3\n"),
    "memory": (MemoryError(), "INTERNAL: MemoryError\n"),
    "recursion": (RecursionError("deep"), "RecursionError: deep\n"),
    "warning": (UserWarning("careful"), "UserWarning: careful\n"),
    "interrupt": (KeyboardInterrupt(), "CANCELLED: KeyboardInterrupt\n"),
    "exit": (SystemExit(3), "CANCELLED: SystemExit: 3\n"),
    "generator": (GeneratorExit(), "CANCELLED: GeneratorExit\n"),
    "base": (BaseException("b"), "CANCELLED: BaseException: b\n"),
}


def context(call, error):
    """The text of JAX's error about an exception that is raised as it is."""
    with pytest.raises(type(error)) as caught:
        call(x)
    assert caught.value is error
    assert isinstance(error.__context__, jax.errors.JaxRuntimeError) and error.__cause__ is None
    return str(error.__context__)


@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("route", every(3, ["eager", "asynchronous", "jit of vmap"]))
def test_awkward_exceptions(kind, route):
    error, text = AWKWARD[kind]
    fail = [True]

    def awkward(v):
        if fail[0]:
            raise error
        return v + 1

    call = ROUTES[route](elementwise(awkward))
    for _ in range(2):
        fail[0] = True
        if route == "eager" and not isinstance(error, Exception):
            shown = context(call, error)
        else:
            shown = message(call, x)
        assert text in shown
        assert "  raised in awkward\n  called with v: float64[3]\n" in shown
        assert f'File "{HERE}", line ' in shown
        fail[0] = False
        np.testing.assert_array_equal(jnp.asarray(call(x)).reshape(-1, 3)[0], x + 1)
    error.__traceback__ = None


def test_very_long_messages():
    text = message(elementwise(lambda v: builtins.exec("raise ValueError('y' * 1_000_000)")), x)
    assert "y" * 1000 in text and "raised in <lambda>" in text


def test_endless_recursion():
    def endless(v):
        return endless(v)

    def through_c(v):
        def again(n):
            return list(map(again, [n]))

        return again(0)

    for function in (endless, through_c):
        for route in (ROUTES["eager"], heavy):
            text = message(route(elementwise(function)), x)
            assert "RecursionError: maximum recursion depth exceeded" in text
            assert "more times" in text and len(text) < 5000
            np.testing.assert_array_equal(route(elementwise(lambda v: v))(x), x)


def test_out_of_memory():
    text = message(elementwise(lambda v: np.ones(10**15)), x)
    assert "MemoryError: Unable to allocate" in text and "raised in <lambda>" in text


def test_names_and_paths_with_unicode():
    namespace = {}
    exec(compile("def größe(λ):\n    raise ValueError('ö')\n", "/tmp/ü/∇.py", "exec"), namespace)
    text = message(elementwise(namespace["größe"]), x)
    assert "raised in größe\n  called with λ: float64[3]" in text
    assert 'File "/tmp/ü/∇.py", line 2, in größe' in text


def test_an_exception_frees_what_it_held():
    class Payload:
        pass

    seen = []

    def fails(v):
        payload = Payload()
        seen.append(id(payload))
        raise ValueError(payload)

    message(elementwise(fails), x)
    message(elementwise(lambda v: 1 / 0), x)  # `last_exception` holds one
    gc.collect()
    assert not any(type(o) is Payload for o in gc.get_objects())


# Interruptions ------------------------------------------------------------------------------------


def test_an_interrupt_from_the_keyboard():
    """SIGINT while a function runs inline: the call fails, the next one is right."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        _interrupt_a_call()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_a_call():
    slow = elementwise(lambda v: time.sleep(5) or v)
    quick = elementwise(lambda v: v + 1)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        slow(x).block_until_ready()
    assert time.monotonic() - began < 4
    timer.join()
    np.testing.assert_array_equal(quick(x), x + 1)


@pytest.mark.parametrize(
    "call",
    [lambda f: f(x), lambda f: f(x, k=3), lambda f: jax.vmap(f)(jnp.stack([x, x])),
     lambda f: jax.grad(lambda v: f(v).sum())(x)],
    ids=["plain", "static", "vmap", "grad"],
)  # fmt: skip
def test_the_end_of_the_program_passes_an_eager_call(call):
    """No ``except Exception`` on the way stops it, as JAX's error would be stopped."""
    f = elementwise(lambda v, *, k=2: sys.exit(9))
    f.def_jvp(lambda p, t, *, k: t[0])
    f.def_vjp(lambda p, ct, *, k: ct)
    with pytest.raises(SystemExit) as caught:
        try:
            call(f)
        except Exception as error:
            raise AssertionError("swallowed") from error
    assert caught.value.code == 9
    assert "CANCELLED: SystemExit: 9\n  raised in <lambda>" in str(caught.value.__context__)
    assert jaxbind.last_exception() is caught.value


def test_an_error_of_anything_else_is_not_taken_for_the_end_of_the_program():
    with pytest.raises(KeyboardInterrupt):
        elementwise(lambda v: (_ for _ in ()).throw(KeyboardInterrupt("stop")))(x)
    text = message(elementwise(lambda v: v[:1]), x)
    assert "returned float64[1]" in text


def test_the_cause_is_the_exception_that_the_error_tells_of():
    """Exceptions of other threads come between an error and the look for its cause."""

    def slow_to_fail(v, *, n):
        time.sleep(0.002)
        raise ValueError(f"thread {n}")

    f = elementwise(slow_to_fail)
    causes = {n: [] for n in range(4)}

    def fails(n):
        for _ in range(30):
            try:
                with jax.enable_x64(True):  # which is a setting of each thread
                    f(x, n=n)
            except jax.errors.JaxRuntimeError as error:
                causes[n].append(str(error.__cause__))

    threads = [threading.Thread(target=fails, args=(n,)) for n in causes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert causes == {n: 30 * [f"thread {n}"] for n in causes}


def test_a_profiler_or_tracer_does_not_disturb():
    """A trace function sees frames that hold views; they are gone when the call returns."""
    f = elementwise(lambda v: v + 1)
    for install in (sys.settrace, sys.setprofile):
        seen = []
        old = sys.gettrace() if install is sys.settrace else sys.getprofile()
        install(lambda frame, event, arg: seen.append(event))
        try:
            got = f(x)
        finally:
            install(old)
        np.testing.assert_array_equal(got, x + 1)
        assert "call" in seen


# Warnings and logging -----------------------------------------------------------------------------


def test_warnings_are_shown_once_at_the_users_line():
    f = elementwise(lambda v: (warnings.warn("careful", stacklevel=1), np.log(v))[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        jax.block_until_ready(jax.vmap(f)(jnp.array([[-1.0], [1.0], [-2.0]])))
    assert [str(w.message) for w in caught] == ["careful", "invalid value encountered in log"]
    assert {w.filename for w in caught} == {__file__}


def test_logging_is_silent_unless_it_is_wanted(caplog, capfd):
    def add(v):
        return v + 1

    def fails(v):
        raise ValueError("no")

    f = elementwise(add)
    f(x)
    assert capfd.readouterr() == ("", "") and not caplog.records
    with caplog.at_level(logging.DEBUG, logger="jaxbind"):
        f = elementwise(add)
        f(x)
        f.def_jvp(lambda p, t: t[0])
        message(elementwise(fails), x)
    said = caplog.text
    assert "XLA makes a call site" in said and "caches are cleared" in said
    assert "a bound function raised" in said and "ValueError: no" in said


def test_a_plan_that_cannot_be_made():
    f = jaxbind.bind(lambda v, *, plan: v, "(n)->(n)", name="f")
    f.def_plan(lambda v: 1 / 0)
    text = message(f, x)
    assert "ZeroDivisionError" in text and "called with v: float64[3]" in text
    assert "raised in the function given to f.def_plan" in text


def test_a_tangent_of_a_real_result_is_not_complex():
    f = elementwise(lambda v: 2 * v, name="f")
    f.def_jvp(lambda primals, tangents: 2j * tangents[0])
    text = message(lambda v: jax.jvp(f, (v,), (v,))[1], x)
    assert "f.jvp returned complex128[3] for its result" in text
    f.def_jvp(lambda primals, tangents: 2j * tangents[0], traced=True)
    text = message(lambda v: jax.jvp(f, (v,), (v,))[1], x, error=TypeError)
    assert "f.jvp returned complex128[3] for result 0; wanted float64[3]" in text
    f.def_vjp(lambda primals, cotangent: (2 + 1j) * cotangent)  # JAX's cotangent is the real part
    np.testing.assert_array_equal(jax.grad(lambda v: f(v).sum())(x), 2.0)


# What it is, and what it shows --------------------------------------------------------------------


def only_small(v):
    if v[0] > 2:
        raise ArithmeticError("no convergence")
    return v


EAGER = {
    "call": lambda f: f,
    "vmap": lambda f: lambda v: jax.vmap(f)(jnp.stack([v, v])),
    "jvp": lambda f: lambda v: jax.jvp(f, (v,), (v,)),
    "vjp": lambda f: lambda v: jax.vjp(f, v)[1](v),
}


@pytest.mark.parametrize("route", EAGER)
@pytest.mark.parametrize("raised", [ArithmeticError, KeyboardInterrupt])
def test_an_eager_error_is_one_kind_of_error(route, raised):
    """JAX itself has another one for programs that have run before."""

    def only_small(v):
        if np.any(v > 2):
            raise raised("no convergence")
        return v

    f = elementwise(only_small)
    f.def_jvp(lambda p, t: only_small(p[0]) * t[0])
    f.def_vjp(lambda p, ct: only_small(p[0]) * ct)
    run = EAGER[route](f)
    for value in (1.0, 1.0, 3.0):
        if value < 2:
            jax.block_until_ready(run(jnp.full(3, value)))
            continue
        kind = jax.errors.JaxRuntimeError if raised is ArithmeticError else raised
        with pytest.raises(kind, match="no convergence") as caught:
            jax.block_until_ready(run(jnp.full(3, value)))
    error = caught.value
    assert type(error if raised is KeyboardInterrupt else error.__cause__) is raised


def test_the_cause_begins_at_the_users_lines():
    f = elementwise(only_small)
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.block_until_ready(f(jnp.full(3, 3.0)))
    frames = caught.value.__cause__.__traceback__
    assert frames.tb_frame.f_code is only_small.__code__ and frames.tb_next is None
    with pytest.raises(jax.errors.JaxRuntimeError, match="returned") as caught:
        jax.block_until_ready(elementwise(lambda v: v[1:])(x))
    assert caught.value.__cause__.__traceback__ is None


def test_a_rule_over_numpy_where_one_of_jax_is_wanted():
    f = elementwise(np.sin)
    f.def_partials(lambda v: np.cos(v))
    with pytest.raises(jax.errors.TracerArrayConversionError) as caught:
        jax.jit(jax.grad(lambda v: f(v).sum()))(x)
    assert any("declared with traced=False" in note for note in caught.value.__notes__)


def test_a_rule_of_jax_where_one_over_numpy_is_wanted():
    f = elementwise(lambda v: v**2)
    f.def_vjp(lambda p, ct: 2 * jnp.sin(p[0]) * ct)
    text = message(jax.grad(lambda v: f(v).sum()), x)
    assert "a rule that is a JAX function is declared with traced=True" in text


def test_a_rule_whose_result_has_another_shape():
    f = jaxbind.bind(lambda a, v: a @ v, "(m,n),(n)->(m)", name="matvec")
    f.def_vjp(lambda p, ct: (np.outer(p[1], ct), p[0].T @ ct))
    text = message(jax.grad(lambda a: f(a, jnp.ones(3)).sum()), jnp.ones((2, 3)))
    assert "matvec.vjp returned float64[3,2] for " in text
    assert "where float64[2,3] is wanted: a rule gives tangents of the shapes of the res" in text


def test_an_array_that_waits_for_the_call_that_reads_it(monkeypatch):
    """A loop that binds its state to one name, which a function in it reads."""
    monkeypatch.setattr(_reads, "PATIENCE", 0.2)
    state = jnp.ones((400, 400))

    def damp(v):
        return v * (0.5 if np.asarray(state)[0, 0] > 1 else 1.0)

    damp = jaxbind.bind(damp, "(n)->(n)")
    step = jax.jit(lambda state: damp(state @ state / 400))
    state.block_until_ready()
    with pytest.raises(RuntimeError, match="reads the JAX array 'state', which is not there yet"):
        for _ in range(50):
            state = step(state)
        state.block_until_ready()
    state = jnp.ones((400, 400)) + 1
    np.testing.assert_array_equal(damp(jnp.ones(3)), 0.5 * np.ones(3))  # one that comes


class Model:
    """What a function reads in between its calls, and the program that replaces it."""

    def __init__(self):
        self.kept = jnp.ones((400, 400))
        self.entries = {"u": self.kept, "key": jax.random.key(0)}
        self.unread = self.kept

    def __call__(self, v):
        return v * (0.5 if np.asarray(self.kept)[0, 0] > 1 else 1.0)

    def method(self, v):
        return v * np.asarray(self.kept)[0, 0]

    def entry(self, v):
        return v * np.asarray(self.entries["u"])[0, 0]

    def other(self, v):
        return v + np.asarray(self.unread)[0, 0] * 0


def of_a_global(v):
    return v * np.asarray(MODEL.kept)[0, 0]


MODEL = Model()


@pytest.mark.parametrize(
    "function, name",
    [
        (lambda model: model, "'self.kept'"),
        (lambda model: model.method, "'self.kept'"),
        (lambda model: model.entry, "\"self.entries['u']\""),
        (lambda model: of_a_global, "'MODEL.kept'"),
    ],
    ids=["object", "method", "dict", "global"],
)
def test_an_array_in_something_that_waits_for_the_call_that_reads_it(monkeypatch, function, name):
    monkeypatch.setattr(_reads, "PATIENCE", 0.2)
    model = Model()
    monkeypatch.setitem(globals(), "MODEL", model)
    damp = jaxbind.bind(function(model), "(n)->(n)")
    step = jax.jit(lambda state: damp(state @ state / 400))
    with pytest.raises(RuntimeError, match=re.escape(f"reads the JAX array {name}, which is not")):
        for _ in range(50):
            model.kept = model.entries["u"] = step(model.kept)
        model.kept.block_until_ready()


@pytest.mark.parametrize("function", ["__call__", "other", "entry"])
def test_an_array_that_is_not_read_is_not_waited_for(monkeypatch, function):
    """What only another method names, or another entry."""
    monkeypatch.setattr(_reads, "PATIENCE", 0.0)
    model = Model()
    jax.block_until_ready((model.kept, model.entries["u"]))
    damp = jaxbind.bind(getattr(model, function), "(n)->(n)")
    step = jax.jit(lambda state: damp(state @ state / 400))
    state = model.kept + 0
    for _ in range(20):
        state = step(state)
        if function == "other":
            model.kept = state
        model.entries["unread"] = model.never = state
    np.testing.assert_array_equal(state, 1.0)


def test_an_array_that_another_thread_changes_all_the_time():
    model, over = Model(), threading.Event()
    ones = [jnp.ones((400, 400)) for _ in range(8)]
    jax.block_until_ready(ones)
    damp = jaxbind.bind(model.method, "(n)->(n)")

    def change():
        while not over.is_set():
            for one in ones:
                model.kept = one

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(5):
            np.testing.assert_array_equal(damp(np.ones(3)), 1.0)
    finally:
        over.set()
        thread.join()


ASKED = []


class Proxy:
    """Has ideas of its own about its attributes."""

    def __getattribute__(self, name):
        ASKED.append(name)
        raise RuntimeError(f"{name}: not at this time")

    __dict__ = property(lambda self: ASKED.append("__dict__"))


class Short(list):
    def __getitem__(self, i):
        raise RuntimeError("not at this time")


def test_looking_for_arrays_calls_nothing_of_the_users():
    one = jnp.ones(3)
    entries = collections.defaultdict(lambda: one, {"u": one, Proxy: one})
    elements, proxy, record = Short([one]), Proxy(), collections.namedtuple("Record", "u")(one)

    def function(v):
        assert [entries, elements, proxy, record]  # names them
        return 3 * v

    f = jax.jit(jaxbind.bind(function, "(n)->(n)"))
    np.testing.assert_array_equal(f(x), 3 * x)
    del entries["u"], elements[0]
    np.testing.assert_array_equal(f(x + 1), 3 * (x + 1))
    assert set(entries) == {Proxy} and not ASKED


def test_a_function_that_calls_itself_through_jax():
    f = jaxbind.bind(lambda x: np.asarray(f(x)), "()->()", allow_jax=True)
    with pytest.raises(Exception, match="the function calls itself through JAX") as caught:
        f(1.0)
    assert "jax_" not in str(caught.value)  # JAX's list of its settings
