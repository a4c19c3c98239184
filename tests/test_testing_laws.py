"""`testing.laws`: each law alone, on concrete arguments; and what a broken one says."""

import contextlib
import copy
import ctypes
import os
import pickle
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import scipy.special
from amount import every
from hypothesis import example, given, settings

import jaxbind
from jaxbind import testing
from jaxbind._poison import poisoned
from jaxbind.testing import LawViolation, laws
from jaxbind.testing._compare import copied, difference

x = np.array([0.5, -1.25, 3.0])
y = np.array([2.0, 0.75, -1.5])
z = np.array([1 + 2j, -0.5j, 3.0])


def bound(function, signature="(n)->(n)", name="f", rules=None, **options):
    """A binding and its rules, by the names of their ``def_``."""
    f = jaxbind.bind(function, signature, name=name, **options)
    for rule, made in (rules or {}).items():
        *derivatives, last = rule.split("_")
        of = f
        for step in derivatives:
            of = getattr(of, step)
        getattr(of, f"def_{last}")(made)
    return f


def cube(**changes):
    rules = {
        "jvp": lambda p, t: 3 * p[0] ** 2 * t[0],
        "vjp": lambda p, ct: 3 * p[0] ** 2 * ct,
        "jvp_jvp": lambda p, t: 6 * p[0][0] * p[1][0] * t[0][0],
        "jvp_vjp": lambda p, ct: ((6 * p[0][0] * p[1][0] * ct,), None),
        "vjp_jvp": lambda p, t: (6 * p[0][0] * p[1] * t[0][0],),
        "vjp_vjp": lambda p, cts: ((6 * p[0][0] * p[1] * cts[0],), None),
        **changes,
    }
    return bound(lambda x: x**3, rules={k: rule for k, rule in rules.items() if rule is not None})


def fft(transpose=lambda ct: np.fft.fft(ct)):
    return bound(lambda x: np.fft.fft(x), linear=True, name="fft", rules={"transpose": transpose})


def adjoint_of_fft(ct):
    return ct.shape[-1] * np.fft.ifft(ct)


def cumsum(axis=-1):
    return bound(lambda x: np.cumsum(x, axis), vectorized=True, name="cumsum")


def power():
    return bound(lambda x, *, power: x**power)


# Wrong functions ----------------------------------------------------------------------------------


def unwritten():
    def function(x, out):
        out[:-1] = x[:-1]

    return bound(function)


def in_place():
    def function(x):
        memory = (ctypes.c_char * x.nbytes).from_address(x.ctypes.data)
        np.frombuffer(memory, x.dtype)[...] = 7
        return x.copy()

    return bound(function)


def keeping():
    kept = []
    return bound(lambda x: kept.append(x) or 2 * x)


def counting():
    calls = []
    return bound(lambda x: calls.append(0) or x + len(calls))


def remembering():
    """By the operand alone, whatever the static keyword is."""
    found = {}
    return bound(lambda x, *, power: found.setdefault(x.tobytes(), x**power).copy())


def sharing():
    work = np.empty(3)

    def function(x):
        work[...] = x
        time.sleep(1e-3)
        return 2 * work

    return bound(function)


def changing_later():
    """The first program that calls it is the one that `jit` takes for the truth."""
    calls = []
    return bound(lambda x: calls.append(0) or x * (1 if len(calls) < 3 else 2))


def twice():
    """The identity, with a transpose in JAX that can be transposed by itself."""
    f = bound(lambda x: x.copy(), linear=True)
    f.def_transpose(lambda ct: 2 * ct, traced=True)
    return f


def single():
    return bound(lambda x: np.exp(x.astype(np.float32)).astype(x.dtype))


def no_nan():
    """Wherever JAX calls it; the law calls it directly to compare."""

    def function(x):
        directly = sys._getframe(1).f_code.co_name == "direct"
        return x.copy() if directly else np.nan_to_num(x)

    return bound(function)


POWERS = {"statics": [{"power": 2}, {"power": 3}], "static": {"power": 2}}


@dataclass(frozen=True)
class Row:
    """What a law is tried on.

    Attributes:
      right, wrong: make bindings.
      args, keywords: with which the law is called.
      elsewhere: a binding to which it does not apply, arguments, and the reason that is given.
    """

    right: Callable
    wrong: Callable
    args: tuple = (x,)
    keywords: Mapping = field(default_factory=dict)
    elsewhere: tuple | None = None


integers = np.arange(3)
no_rules = lambda: bound(lambda x: x * 2)
raising = lambda: bound(lambda x: np.linalg.cholesky(-np.eye(2)))
raises = (raising, (x,), "the function raises: LinAlgError: Matrix is not positive definite")
not_linear = (cube, (x,), "nothing is declared linear or multilinear")

TABLE = {
    "abstract": Row(cube, lambda: bound(lambda x: x[1:]), elsewhere=raises),
    "complete": Row(cube, unwritten, elsewhere=raises),
    "inputs_kept": Row(cube, in_place, elsewhere=raises),
    "released": Row(cube, keeping, elsewhere=raises),
    "deterministic": Row(cube, counting, elsewhere=raises),
    "jit": Row(cube, changing_later, elsewhere=raises),
    "jvp": Row(
        cube,
        lambda: cube(jvp=lambda p, t: p[0] ** 2 * t[0]),
        elsewhere=(no_rules, (x,), "no rule for forward mode: f: "),
    ),
    "jvp_linear": Row(
        cube,
        lambda: cube(jvp=lambda p, t: 3 * p[0] ** 2 * np.abs(t[0])),
        elsewhere=(no_rules, (integers,), "no argument has a derivative (integer, boolean"),
    ),
    "adjoint": Row(
        cube,
        lambda: cube(vjp=lambda p, ct: -3 * p[0] ** 2 * ct),
        elsewhere=(no_rules, (x,), "no rule for reverse mode: f: "),
    ),
    "linear": Row(fft, lambda: bound(lambda x: x + 1, linear=True), (z,), elsewhere=not_linear),
    "transpose_transpose": Row(fft, twice, (z,), elsewhere=not_linear),
    "higher": Row(
        cube,
        lambda: cube(vjp_jvp=lambda p, t: (3 * p[0][0] * p[1] * t[0][0],)),
        elsewhere=(no_rules, (x,), "no first derivatives"),
    ),
    "vmap": Row(cumsum, lambda: cumsum(axis=0), elsewhere=raises),
    "loop_dims": Row(cumsum, lambda: cumsum(axis=0), (x,), {"seed": 1}, raises),
    "static": Row(
        power, remembering, (x,), POWERS, (cube, (x,), "there is one set of static parameters")
    ),
    "sharded": Row(cumsum, lambda: cumsum(axis=0), elsewhere=raises),
    "threads": Row(
        cube,
        sharing,
        elsewhere=(lambda: bound(np.zeros_like), (x,), "all operands give the same result"),
    ),
    "export": Row(
        lambda: bound(lambda x: x**2, name="square"),
        counting,
        elsewhere=(lambda: bound(lambda x: x**2, name=None), (x,), "not importable by name"),
    ),
    "dtypes": Row(cube, single, elsewhere=(no_rules, (integers,), "no floating-point operand")),
    "special_values": Row(
        cube,
        no_nan,
        (x,),
        {"seed": 2},
        elsewhere=(no_rules, (integers,), "no floating-point operand"),
    ),
}


def broken(law, f, *args, **keywords):
    """The violation that a law raises."""
    args = jax.tree.map(np.array, args)  # some write into them
    with pytest.raises(LawViolation) as caught:
        laws.LAWS[law](f, args, **keywords)
    return caught.value


def violation_of(f, **keywords):
    with pytest.raises(LawViolation) as caught:
        testing.check(f, **keywords)
    return caught.value


# Each law alone -----------------------------------------------------------------------------------


def test_every_law_is_tried():
    assert list(TABLE) == list(laws.LAWS)


@pytest.mark.parametrize("law", TABLE)
def test_a_right_binding_passes(law):
    row = TABLE[law]
    assert laws.LAWS[law](row.right(), row.args, **row.keywords) is None


@pytest.mark.parametrize("law", TABLE)
def test_a_wrong_binding_does_not(law):
    row = TABLE[law]
    violation = broken(law, row.wrong(), *row.args, **row.keywords)
    assert violation.law == law


@pytest.mark.parametrize("law", TABLE)
def test_where_it_does_not_apply(law):
    make, args, reason = TABLE[law].elsewhere
    with pytest.raises(laws.Skip) as caught:
        laws.LAWS[law](make(), args)
    assert str(caught.value).startswith(reason)
    assert not isinstance(caught.value, LawViolation)


def test_effects_happen_on_one_device():
    f = bound(lambda x: x + 1, "()->()", effect="unordered")
    with pytest.raises(laws.Skip, match="effects on one device"):
        laws.sharded(f, (np.array(1.0),))


def test_the_one_device_reason():
    """In a process with one device."""
    script = """
        import numpy as np, jaxbind
        from jaxbind.testing import laws
        try:
            laws.sharded(jaxbind.bind(np.sin), (np.array(1.0),))
        except laws.Skip as skip:
            print(skip)
    """
    done = run(script, XLA_FLAGS="")
    assert done.stdout == (
        "there is one device (XLA_FLAGS=--xla_force_host_platform_device_count=4)\n"
    )


def aligned(offset):
    """``x``, so many bytes behind a multiple of 64; JAX borrows what is aligned."""
    raw = np.zeros(128 + x.nbytes, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    found = raw[start : start + x.nbytes].view(x.dtype)
    found[:] = x
    return found


@pytest.mark.parametrize("offset", [0, 8, 16, 32])
def test_modified_operands_wherever_they_are(offset):
    """The fault is found, and the caller's array is not touched."""
    operand = aligned(offset)
    with pytest.raises(LawViolation, match="argument 0"):
        laws.inputs_kept(in_place(), (operand,))
    np.testing.assert_array_equal(operand, x)


@dataclass(frozen=True)
class Mode:
    """A static parameter whose text does not tell its value."""

    factor: float = field(repr=False)


def test_static_parameters_that_look_alike():
    modes = {"statics": [{"mode": Mode(1.0)}, {"mode": Mode(3.0)}], "static": {"mode": Mode(1.0)}}
    laws.static(bound(lambda x, *, mode: x * mode.factor), (x,), **modes)
    kept = {}
    forgetful = bound(lambda x, *, mode: kept.setdefault(x.tobytes(), x * mode.factor).copy())
    assert "remember" in broken("static", forgetful, x, **modes).found
    f = bound(lambda x, *, mode: x * mode.factor, rules={"jvp": lambda p, t, *, mode: t[0]})
    laws.jvp(f, (x,), static={"mode": Mode(1.0)})
    broken("jvp", f, x, static={"mode": Mode(3.0)})


@pytest.mark.parametrize("law", ["jvp", "jvp_linear", "adjoint", "vmap", "loop_dims", "higher"])
def test_bfloat16(law):
    """Differences in so few digits may say nothing; a right rule is never blamed."""
    rules = {"jvp": lambda p, t: 2 * p[0] * t[0], "vjp": lambda p, w: 2 * p[0] * w}
    f = bound(lambda x: x * x, rules=rules)
    for seed in range(4):
        with contextlib.suppress(laws.Skip):
            laws.LAWS[law](f, (x.astype(jax.numpy.bfloat16),), seed=seed)


def test_results_in_the_memory_of_operands():
    """`complete` fills no operand, and sees what is not written although it lies in one."""

    def twice(x, out):
        out[...] = 2 * x

    def half(x, out):
        out[1:] = 2 * x[1:]

    laws.complete(bound(twice, aliases={"x": 0}), (x,))
    assert "1 of 3 elements of f" in broken("complete", bound(half, aliases={"x": 0}), x).found


def test_poison_nests():
    f = jaxbind.bind(lambda x, out: None, "(n)->(n)")

    def seen():
        return np.asarray(f(x)).tobytes()[0], np.empty(1000, np.uint8)[-1]

    with jax.enable_x64(True), poisoned(0xA5):
        assert seen() == (0xA5, 0xA5)
        with poisoned(0x5A):
            assert seen() == (0x5A, 0x5A)
        assert seen() == (0xA5, 0xA5)


def test_poison_of_one_thread_at_a_time():
    """Two that are tried at once find the fault both, and do not end each other's poison."""
    barrier, found = threading.Barrier(2), []

    def work():
        f = unwritten()
        barrier.wait()
        for _ in range(5):
            with pytest.raises(LawViolation):
                laws.complete(f, (x,))
            found.append(True)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 10


@pytest.mark.parametrize("law", ["vmap", "loop_dims"])
def test_rounding_on_the_way(law):
    """NumPy rounds squares in arrays and alone differently, which is seen where they cancel."""
    f = bound(lambda x: (1e3 + x) ** 2 - 1e6, "()->()", vectorized=True)
    for seed in range(8):
        laws.LAWS[law](f, (np.array(0j),), seed=seed, more=[(np.array(-1.1 - 2.5j),)] * 3)


NEAR_ZERO = {
    "1 - cos": (lambda x: 1 - np.cos(x), np.sin),
    "log(1 + x)": (lambda x: np.log(1 + x), lambda x: 1 / (1 + x)),
    "exp(x) - 1": (lambda x: np.exp(x) - 1, np.exp),
    "root": (lambda x: np.sqrt(1 + x * x) - 1, lambda x: x / np.sqrt(1 + x * x)),
    "log cosh": (lambda x: np.log(np.cosh(x)), np.tanh),
    "far": (lambda x: (1e3 + x) ** 2 - 1e6, lambda x: 2 * (1e3 + x)),
    "softened": (lambda x: np.sqrt(1e-4 + x * x) - 1e-2, lambda x: x / np.sqrt(1e-4 + x * x)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEAR_ZERO)
@given(exponent=st.floats(-18, -0.5), sign=st.sampled_from([-1, 1]))
@example(exponent=-5.0, sign=1)
@example(exponent=-300.0, sign=1)
def test_a_value_that_cancels_near_zero_is_not_blamed(name, exponent, sign):
    function, slope = NEAR_ZERO[name]
    rules = {"jvp": lambda p, t: slope(p[0]) * t[0], "vjp": lambda p, ct: slope(p[0]) * ct}
    f = bound(function, "()->()", rules=rules, vectorized=True)
    x = np.array(sign * 10.0**exponent)
    for law in (laws.jvp, laws.adjoint):
        with contextlib.suppress(laws.Skip):
            law(f, (x,))


SHAPES_NEAR_ZERO = {
    "x log x": (lambda x: x * np.log(x), lambda x: np.log(x) + 1),
    "power": (lambda x: x**1.5, lambda x: 1.5 * x**0.5),
    "root and line": (lambda x: np.sqrt(x) + 100 * x, lambda x: 0.5 / np.sqrt(x) + 100),
    "logarithm and line": (lambda x: np.log(x) + 1e3 * x, lambda x: 1 / x + 1e3),
    "saturating": (lambda x: x / (0.01 + x) + 10 * x, lambda x: 0.01 / (0.01 + x) ** 2 + 10),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES_NEAR_ZERO)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(exponent=st.floats(0, 1))
def test_what_bends_near_zero_is_no_rounding(name, dtype, exponent):
    function, slope = SHAPES_NEAR_ZERO[name]
    x = np.array(10.0 ** (-2 - exponent * (2 if dtype is np.float32 else 7)), dtype)

    def given_with(factor):
        rule = lambda p, t: np.asarray(factor * slope(p[0]) * t[0], p[0].dtype)
        same = lambda x: np.asarray(function(x), x.dtype)
        return bound(same, "()->()", rules={"jvp": rule}, vectorized=True)

    try:
        laws.jvp(given_with(1), (x,))
    except laws.Skip:  # too few digits there to tell anything
        hypothesis.reject()
    with pytest.raises(LawViolation):
        laws.jvp(given_with(2), (x,))


def test_what_cancels_in_few_digits():
    """Where float32 has few digits left, that is no fault; half precision on the way is one."""
    cancelling = bound(lambda x: (1e3 + x) ** 2 - 1e6, "()->()", vectorized=True)
    halved = bound(
        lambda x: np.cos(x.astype(np.float16) if x.dtype == np.float32 else x).astype(x.dtype)
    )
    for seed in range(4):
        laws.dtypes(cancelling, (np.array(0.4721559470859169),), seed=seed)
        broken("dtypes", halved, np.array([0.4721559470859169]), seed=seed)


def test_numbers_that_look_alike_are_told_apart():
    shown = difference(np.array([1.0]), np.array([1 + 1e-12]), 0.0)
    assert shown == "1 and 1.0000000000010001 at [0]"


# Diagnoses ---------------------------------------------------------------------------------------


def test_a_law_alone_says_what_is_wrong():
    f = bound(np.sin, rules={"jvp": lambda p, t: 2 * np.cos(p[0]) * t[0]})
    assert "def_jvp gives 2 times what it should." in str(broken("jvp", f, x))


@pytest.mark.slow
def test_a_wrong_derivative_is_not_blamed_on_the_next():
    """The transpose of a wrong pushforward is not the pullback, which is right."""
    f = bound(
        np.sin,
        rules={"jvp": lambda p, t: 2 * np.cos(p[0]) * t[0], "vjp": lambda p, w: np.cos(p[0]) * w},
    )
    with pytest.raises(laws.Skip, match=r"the derivative itself is wrong \(see `jvp`\)"):
        laws.higher(f, (x,))
    found = testing.report(f, seed=0, max_examples=20, laws=["jvp", "higher"])
    assert [v.law for v in found.violations] == ["jvp"]
    wrong_twice = cube(vjp_jvp=lambda p, t: (3 * p[0][0] * p[1] * t[0][0],))
    broken("higher", wrong_twice, x)


@pytest.mark.slow
def test_diagnosis_of_what_raises_elsewhere():
    """The other points at which the derivative may have been taken are no matrices to solve."""

    def dominant(shape, dtype):
        return hnp.arrays(dtype, shape, elements=st.floats(-1, 1)).map(
            lambda a: a + 4 * np.eye(len(a))
        )

    f = bound(np.linalg.solve, "(n,n),(n)->(n)")
    f.def_vjp(lambda p, ct: (np.zeros_like(p[0]), np.linalg.solve(p[0].T, ct)))
    found = violation_of(f, seed=0, elements={"a": dominant}, dtypes=[np.float64])
    assert found.law == "adjoint" and found.diagnosis.kind == "missing_term"


def test_diagnosis_at_the_example_itself():
    """Everywhere else the function is saturated, and both derivatives are zero."""
    f = bound(lambda x: np.tanh(50 * x), "()->()", vectorized=True)
    f.def_jvp(lambda p, t: (1 - np.tanh(50 * p[0]) ** 2) * t[0])
    found = violation_of(f, seed=0, laws=["jvp"])
    assert "def_jvp gives 1/50 times what it should." in str(found)


def test_no_diagnosis_by_columns_of_what_has_no_complex_matrix():
    f = bound(lambda z, w: np.conj(z) * w, "(),()->()", vectorized=True)
    f.def_jvp(lambda p, t: np.conj(t[0]) * p[1] + np.conj(p[0]) * t[1])
    f.def_vjp(lambda p, ct: (ct * np.conj(p[1]), ct * p[0]))
    found = violation_of(f, seed=0, dtypes=np.complex128)
    assert found.law == "adjoint" and "wrong point" not in str(found)


def test_diagnosis_where_the_derivative_vanishes_elsewhere():
    f = bound(lambda x: x * np.exp(x), "()->()", vectorized=True)
    f.def_jvp(lambda p, t: (1 + p[0]) * np.exp(p[0]) * t[0])
    f.def_vjp(lambda p, ct: (1 - p[0]) * np.exp(-p[0]) * ct)
    found = violation_of(f, seed=0, elements=st.floats(-3, 3))
    assert found.law == "adjoint" and "at the wrong point: at -x in place of x" in str(found)


def test_no_single_precision_where_there_is_none():
    f = bound(lambda x: np.sinh(1e-3 * x), linear=True, rules={"transpose": lambda ct: 1e-3 * ct})
    found = violation_of(f, seed=0, laws=["linear"], dtypes=np.float64)
    assert found.diagnosis is None


def test_chance_is_no_stale_buffer():
    rng = np.random.default_rng(0)
    f = bound(lambda x: x * (rng.random(x.shape) > 0.5))
    found = violation_of(f, seed=0, laws=["deterministic"])
    assert found.diagnosis is None


@pytest.mark.slow
def test_diagnosis_where_one_point_cannot_be_judged():
    f = bound(lambda x, y: x**3 * y, "(),()->()", vectorized=True)
    f.def_jvp(lambda p, t: 3 * p[0] ** 2 * p[1] * t[0] + p[0] ** 3 * t[1])
    f.def_vjp(lambda p, ct: (3 * p[1] ** 2 * p[0] * ct, p[1] ** 3 * ct))
    found = violation_of(f, seed=0, elements=st.floats(-3, 3), dtypes=np.float64, max_examples=100)
    assert found.law == "adjoint" and "the arguments exchanged" in str(found)


def test_diagnosis_of_operands_in_any_order_of_memory():
    turn = np.array([[1.0, 2.0, 0.0], [0.5, -3.0, 1.0], [0.0, 4.0, 1.0]])
    f = bound(lambda a: turn @ a, "(n,n)->(n,n)", linear=True)
    f.def_transpose(lambda ct: turn @ ct)
    a = st.builds(np.asfortranarray, hnp.arrays(float, (3, 3), elements=st.floats(1, 2)))
    found = violation_of(f, seed=0, inputs=st.tuples(a))
    assert "def_transpose has the Jacobian transposed" in str(found)


def test_diagnosis_of_one_of_several_results():
    def texts(jvp=None, vjp=None):
        f = bound(lambda x, y: (x * y, x + 2 * y), "(),()->(),()", vectorized=True)
        f.def_jvp(jvp or (lambda p, t: (p[1] * t[0] + p[0] * t[1], t[0] + 2 * t[1])))
        f.def_vjp(vjp or (lambda p, w: (p[1] * w[0] + w[1], p[0] * w[0] + 2 * w[1])))
        return str(violation_of(f, seed=0, dtypes=float))

    assert "def_jvp lacks the term of result 1: what it gives for it is zero." in texts(
        lambda p, t: (p[1] * t[0] + p[0] * t[1], 0 * t[0])
    )
    assert "def_jvp lacks the term of result 0 in y: what it gives for it is zero." in texts(
        lambda p, t: (p[1] * t[0], t[0] + 2 * t[1])
    )
    assert "def_jvp gives 1/2 times what it should, for result 1 in y." in texts(
        lambda p, t: (p[1] * t[0] + p[0] * t[1], t[0] + t[1])
    )
    assert "def_vjp takes the cotangents of result 0 and result 1 in the wrong order." in texts(
        vjp=lambda p, w: (p[1] * w[1] + w[0], p[0] * w[1] + 2 * w[0])
    )
    assert "def_vjp gives -1 times what it should, for result 0." in texts(
        vjp=lambda p, w: (-p[1] * w[0] + w[1], -p[0] * w[0] + 2 * w[1])
    )


def test_diagnosis_of_an_inverse_for_a_transpose():
    turn = np.array([[1.0, 2.0], [0.5, -3.0]])
    f = bound(lambda x: turn @ x, "(n)->(n)", linear=True)
    f.def_transpose(lambda ct: np.linalg.solve(turn, ct))
    vectors = hnp.arrays(float, 2, elements=st.floats(-2, 2))
    found = violation_of(f, seed=0, inputs=st.tuples(vectors))
    assert found.diagnosis.kind == "inverted"
    assert "def_transpose applies the inverse of the Jacobian in place of its transpose" in str(
        found
    )


C = 299792458.0
FLAT_BY_ROUNDING = {
    "softplus": (lambda x: np.log(1 + np.exp(x)), scipy.special.expit, None),
    "kinetic energy": (
        lambda v: C**2 * (1 / np.sqrt(1 - (v / C) ** 2) - 1),
        lambda v: v * (1 - (v / C) ** 2) ** -1.5,
        None,
    ),
    "pseudo-Huber": (
        lambda x: 9 * (np.sqrt(1 + (x / 3) ** 2) - 1),
        lambda x: x / np.sqrt(1 + (x / 3) ** 2),
        st.floats(-5, 5),
    ),
    "haversine": (
        lambda x: (1 - np.cos(np.pi * x / 180)) / 2,
        lambda x: np.pi / 360 * np.sin(np.pi * x / 180),
        st.floats(-90, 90),
    ),
    "per million": (lambda x: 1e6 * ((1 + 1e-9 * x) - 1), lambda x: 1e-3 + 0 * x, None),
}


@pytest.mark.parametrize("name", every(3, FLAT_BY_ROUNDING))
@pytest.mark.parametrize("mode", every(2, ["jvp", "vjp"]))
def test_what_rounds_to_a_constant_is_right(name, mode):
    """Differences are exactly zero there, and the rule is not."""
    function, slope, elements = FLAT_BY_ROUNDING[name]
    f = bound(function, "()->()", vectorized=True, compute_dtype=np.float64)
    if mode == "jvp":
        f.def_partials(slope, traced=False)
    else:
        f.def_vjp(lambda p, w: w * slope(p[0]))
    for seed in range(2):
        testing.check(
            f, seed=seed, elements=elements, laws=["jvp", "adjoint", "dtypes"], max_examples=60
        )


CONSTANT = {
    "leaky": (lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1, 0.01)),
    "clipped": (lambda x: np.clip(x, -1, 1), lambda x: np.where(np.abs(x) < 1, 1, 1e-3)),
    "floor": (np.floor, np.ones_like),
    "step": (lambda x: 1.0 * (x > 0), lambda x: 0.25 / np.cosh(x / 2) ** 2),
}


@pytest.mark.parametrize("name", every(2, CONSTANT))
def test_what_is_constant_without_rounding_has_no_slope(name):
    function, slope = CONSTANT[name]
    for mode in ("jvp", "vjp"):
        f = bound(function, "()->()", vectorized=True)
        if mode == "jvp":
            f.def_partials(slope, traced=False)
        else:
            f.def_vjp(lambda p, w: w * slope(p[0]))
        violation_of(f, seed=0, laws=["jvp", "adjoint"], dtypes=float, max_examples=60)


@pytest.mark.parametrize("function", [np.sinc, np.cos, np.square])
def test_a_rule_that_is_not_finite_where_the_derivative_is_zero(function):
    """Central differences are zero there, step by step, and the function is not constant."""
    f = bound(function, "()->()", vectorized=True)
    f.def_jvp(lambda p, t: np.where(p[0] == 0, np.nan, t[0]))
    with pytest.raises(LawViolation, match="J v = nan"):
        laws.jvp(f, (np.array(0.0),))


def test_diagnosis_of_a_static_parameter_that_a_rule_ignores():
    f = bound(lambda x, *, power: x**power, "()->()", vectorized=True)
    f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    found = violation_of(f, seed=0, dtypes=float, static=[{"power": 2}, {"power": 3}])
    assert (
        "def_jvp is right for power=2, and wrong for power=3: does it take power into account?"
    ) in str(found)


def test_diagnosis_of_a_cotangent_that_a_rule_ignores():
    f = bound(lambda x: np.exp(x), "()->()", vectorized=True)
    f.def_vjp(lambda p, w: np.exp(p[0]))
    found = violation_of(f, seed=0, dtypes=float)
    assert "def_vjp gives the same for any cotangent" in str(found)


def test_diagnoses_that_would_mislead():
    expm1 = bound(np.expm1, "()->()", vectorized=True)
    expm1.def_partials(lambda x: np.where(x == 0, 0, np.exp(x)), traced=False)
    assert "gives zero at some operands" in str(violation_of(expm1, seed=0, dtypes=float))
    turn = np.exp(0.3j)
    f = bound(lambda v: v * turn, "(n)->(n)", linear=True, dtype=complex)
    f.def_transpose(lambda w: (w * turn).real.astype(complex))
    assert "times what it should" not in str(violation_of(f, seed=0, dtypes=complex))
    gas = bound(lambda t: 8.31446261815324 * t**2, "()->()", vectorized=True)
    gas.def_partials(lambda t: 2 * 8.314463 * t, traced=False)
    found = violation_of(gas, seed=0, elements=st.floats(200, 400), dtypes=float)
    assert "gives 1.000000046 times" in str(found)


def test_places_of_complex_numbers_and_in_trees():
    f = bound(lambda z: z**2, "()->()", vectorized=True)
    f.def_jvp(lambda p, t: 2 * np.conj(p[0]) * t[0])
    with pytest.raises(LawViolation, match="in the imaginary part of the result, diff"):
        laws.jvp(f, (np.array(1j),))
    g = jaxbind.bind(
        lambda s: np.sum(s["x"] ** 2 * s["y"]), out=lambda s: jax.ShapeDtypeStruct((), float)
    )
    g.def_vjp(lambda p, w: ({"x": w * p[0]["x"] ** 2, "y": 2 * w * p[0]["x"] * p[0]["y"]},))
    a = hnp.arrays(float, 2, elements=st.floats(-4, 4))
    given = st.fixed_dictionaries({"x": a, "y": a}).map(lambda d: (d,))
    assert "cotangents of s['x'] and s['y'] in the wrong order" in str(
        violation_of(g, seed=1, inputs=given, max_examples=100)
    )


@pytest.mark.slow
def test_the_example_is_real_where_real_numbers_show_the_fault():
    """The first of three elements may happen to be drawn complex."""
    f = bound(lambda x: np.roll(x, 1), "(n)->(n)", linear=True)
    f.def_transpose(lambda ct: np.roll(ct, 1))
    for seed in range(2):
        found = violation_of(f, seed=seed, laws=["adjoint"], max_examples=100)
        assert "j" not in str(found).splitlines()[1] and "complex" not in str(found)
    g = bound(lambda z: z * z, "()->()", vectorized=True)
    g.def_jvp(lambda p, t: 2 * p[0] * t[0])
    g.def_vjp(lambda p, ct: 2 * np.conj(p[0]) * ct)
    assert "complex operands are tried, too" in str(violation_of(g, seed=0))


def test_warnings_of_extreme_examples_stay_away():
    f = bound(lambda x: 1 / x, "()->()", vectorized=True)
    f.def_jvp(lambda p, t: -2 * t[0] / p[0] ** 2)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        violation_of(f, seed=0, elements=st.floats(-2, 2))
    assert not shown


def test_diagnosis_of_zero():
    f = bound(lambda x: np.maximum(x, 0), "()->()", vectorized=True)
    f.def_jvp(lambda p, t: 0 * t[0])
    found = violation_of(f, seed=0, laws=["jvp"])
    assert "def_jvp gives zero, whatever it is given." in str(found)


def test_what_another_shape_hides():
    """A rule that uses what the function kept of its last call, if that has the right shape."""
    kept = {}

    def function(x):
        kept["cos"] = np.cos(x)
        return np.sin(x)

    def pull(p, ct):
        found = kept.get("cos")
        right = found is None or found.shape != ct.shape
        return (np.cos(p[0]) if right else found) * ct

    found = violation_of(bound(function, rules={"vjp": pull}), seed=0, dtypes=np.float64)
    assert found.law == "deterministic"


def test_half_precision_for_single():
    """That is no answer in 32 bits to 64, which is refused as a dtype that is not taken."""
    f = bound(lambda x: x.astype(np.float16) if x.dtype == np.float32 else x)
    assert "with 32 bits" in broken("abstract", f, x).found


@pytest.mark.parametrize("factor", [0.5, 1.5, 2, -1])
def test_a_wrong_answer_in_bfloat16_only(factor):
    bfloat16 = jax.numpy.bfloat16
    f = bound(lambda x: (x * factor).astype(bfloat16) if x.dtype == bfloat16 else x.copy())
    assert "in bfloat16 and" in broken("dtypes", f, x).found
    with pytest.raises(LawViolation):
        testing.check(f, dtypes=bfloat16, laws=["dtypes"], max_examples=20)


def test_a_wrong_answer_in_32_bits_only():
    f = bound(lambda x: x * (1.0 if jax.config.jax_enable_x64 else 1.01))
    assert "in float32 (jax_enable_x64=False) and" in broken("dtypes", f, x).found
    case = {"dtypes": float}  # asked for 64 bits
    testing.check(f, laws=["dtypes"], max_examples=10, **case)


def test_what_is_not_differentiated_is_narrow_in_32_bits_too():
    """A phase that rounding moves, and an integer that wraps, are not the function's fault."""
    f = bound(lambda x, k: x + np.sin(1e6 * k), "(n),()->(n)", nondiff="k")
    laws.dtypes(f, (x, np.array(1 / 3)))
    g = bound(lambda x, k: x + float(k), "(n),()->(n)", nondiff="k", dtype=float)
    laws.dtypes(g, (x, np.array(2**40 + 1)))


@pytest.mark.parametrize("order", "CF")
def test_special_values_in_any_order_of_memory(order):
    seen = []
    f = bound(lambda x: seen.append(x.copy()) or x + 1, "(m,n)->(m,n)")
    laws.special_values(f, (np.ones((3, 4), order=order),))
    assert any(not np.all(np.isfinite(m)) or np.any(m == 0) for m in seen)


def test_the_sum_over_a_matrix_in_fortran_order_is_that_of_the_handler():
    """NumPy adds in the order of the memory; directly, as in the handler, the rows' one."""

    def total(x):
        with np.errstate(all="ignore"):
            return np.add.reduce(x, axis=None)

    f = bound(total, "(m,n)->()")
    matrix = np.asfortranarray(np.geomspace(1, 1e17, 12).reshape(3, 4) * [1, -1, 1, -1])
    for seed in range(20):
        laws.special_values(f, (matrix,), seed=seed)


@given(
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4).flatmap(
        lambda shape: hnp.arrays(np.int16, shape)
    ),
    st.data(),
)
def test_examples_keep_their_layout(array, data):
    index = tuple(
        slice(None, None, data.draw(st.sampled_from([1, -1, 2, -2]))) for _ in array.shape
    )
    order = data.draw(st.permutations(range(array.ndim)))
    part = array[index].transpose(order)
    copy = copied(part)
    assert copy.dtype == part.dtype
    np.testing.assert_array_equal(copy, part)
    assert copy.flags.writeable and not np.shares_memory(copy, array)
    if part.size > 1:
        assert [s for s, n in zip(copy.strides, part.shape, strict=True) if n > 1] == [
            s for s, n in zip(part.strides, part.shape, strict=True) if n > 1
        ]


def test_a_part_of_something_large_is_copied_alone():
    column = np.zeros((1000, 1000))[:, 3]
    assert copied(column).strides == (8,)


def test_tolerances_are_heeded():
    bfloat16 = jax.numpy.bfloat16
    f = bound(lambda x: (x * 2).astype(bfloat16) if x.dtype == bfloat16 else x.copy())
    laws.dtypes(f, (x,), atol=10)
    laws.dtypes(f, (x,), rtol=2)
    near = bound(lambda x: x + 1e-3 * (sys._getframe(1).f_code.co_name == "direct"))
    with pytest.raises(LawViolation):
        laws.special_values(near, (x,))
    laws.special_values(near, (x,), atol=1e-2)


def fourth_power(slip=1.0):
    """x⁴ with rules up to the third derivative, of which one term is multiplied by ``slip``."""

    def entry(tree, *path):
        for i in path:
            if tree is None:
                return 0.0
            tree = tree[i]
        return 0.0 if tree is None else tree

    def second(p, t):
        (x,), (v,) = p
        return 12 * x**2 * v * entry(t, 0, 0) + 4 * x**3 * entry(t, 1, 0)

    def third(p, t):
        ((x,), (v,)), tangents = p
        a, b = entry(tangents, 0, 0), entry(tangents, 1, 0)
        dx, dv = entry(t, 0, 0, 0), entry(t, 0, 1, 0)
        da, db = entry(t, 1, 0, 0), entry(t, 1, 1, 0)
        of_x = slip * 24 * x * v * a * dx + 12 * x**2 * b * dx
        return of_x + 12 * x**2 * (a * dv + v * da) + 4 * x**3 * db

    f = bound(lambda x: x**4, "()->()", name="fourth_power")
    f.def_jvp(lambda p, t: 4 * p[0] ** 3 * t[0])
    f.jvp.def_jvp(second)
    f.jvp.jvp.def_jvp(third)
    return f


def test_third_derivatives_where_they_are_declared():
    point = (np.array(1.25),)
    laws.higher(fourth_power(), point)
    with jax.enable_x64(True):
        assert jax.jacfwd(jax.jacfwd(jax.jacfwd(fourth_power())))(1.25) == 24 * 1.25
    for slip in (1.1, -1.0, 0.0):
        assert "of fourth_power.jvp.jvp" in broken("higher", fourth_power(slip), *point).found


def test_that_the_example_shown_is_the_one_at_real_numbers():
    """However many tries failed before it."""
    f = bound(lambda z: z * z, "(n)->(n)", vectorized=True)
    f.def_jvp(lambda p, t: 3 * p[0] * t[0])
    for seed in range(4):
        found = violation_of(f, seed=seed, laws=["jvp"], max_examples=300)
        assert "f(array([1.]))" in str(found)


# The laws, as laws.md has them --------------------------------------------------------------------

ORDER = """abstract complete inputs_kept released deterministic jit jvp jvp_linear adjoint linear
transpose_transpose higher vmap loop_dims static sharded threads export dtypes special_values"""


def test_order():
    assert list(laws.LAWS) == ORDER.split()


def test_every_law_is_public():
    for name, law in laws.LAWS.items():
        assert getattr(laws, name) is law
        assert name in laws.__all__
        assert law.name == law.__name__ == name
        assert law.statement and law.__doc__
        assert repr(law) == f"<law {name}: {law.statement}>"


def test_causes_come_first():
    assert sorted(laws.CAUSES_FIRST, key=lambda law: law.name) == sorted(
        laws.LAWS.values(), key=lambda law: law.name
    )
    place = {law.name: i for i, law in enumerate(laws.CAUSES_FIRST)}
    for cause, effect in [
        ("abstract", "jvp"),
        ("deterministic", "jvp"),
        ("jvp_linear", "adjoint"),
        ("jvp", "adjoint"),
        ("linear", "transpose_transpose"),
        ("adjoint", "higher"),
    ]:
        assert place[cause] < place[effect]


# Arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [(x,), [x], (jax.numpy.asarray(x, "float32"),), (x.tolist(),), (x[::-1],), (np.zeros(0),)],
    ids=["tuple", "list", "JAX array", "nested list", "strided", "empty"],
)
def test_arguments(args):
    if isinstance(args[0], list):
        args = (np.asarray(args[0]),)
    laws.jit(cube(), args)
    if np.size(args[0]):
        laws.jvp(cube(), args)
    else:
        with pytest.raises(laws.Skip, match="empty"):
            laws.jvp(cube(), args)


def test_64_bits_are_kept():
    """Whatever the setting: a fault of 1e-9 would not show otherwise."""
    f = cube(jvp=lambda p, t: 3 * (1 + 1e-6) * p[0] ** 2 * t[0])
    with jax.enable_x64(False):
        assert "float64" not in str(broken("jvp", f, x))  # an array of doubles needs no dtype
        assert broken("jvp", f, x).case.leaves[0].dtype == np.float64


def test_static_keywords():
    f = bound(
        lambda x, *, power: x**power,
        rules={"jvp": lambda p, t, *, power: 2 * p[0] * t[0]},
    )
    laws.jvp(f, (x,), static={"power": 2})
    assert "power=3)" in broken("jvp", f, x, static={"power": 3}).example


def test_more_arguments_make_the_batch():
    """A function that is right for the first example and its multiples."""
    f = bound(lambda x: x * np.sign(x.sum(axis=-1).max()), vectorized=True)
    laws.vmap(f, (x,))
    assert broken("vmap", f, x, more=[(-x,), (-2 * x,), (-3 * x,)]).law == "vmap"


def test_several_arguments_and_a_tree():
    f = jaxbind.bind(
        lambda a, b: a["x"] * b,
        out=lambda a, b: jax.ShapeDtypeStruct(b.shape, b.dtype),
        name="tree",
    )
    f.def_jvp(lambda p, t: t[0]["x"] * p[1] + p[0]["x"] * t[1])
    laws.jvp(f, ({"x": x}, y))
    f.def_vjp(lambda p, ct: ({"x": p[1] * ct}, -p[0]["x"] * ct))
    assert broken("adjoint", f, {"x": x}, y).example.startswith("tree({'x': array([")


def test_no_binding():
    with pytest.raises(TypeError, match=r"jaxbind\.testing: got a function, .*it tests bindings"):
        laws.jvp(lambda x: x, (x,))


def test_arguments_that_do_not_fit():
    """A mistake of the test, not of the binding: what a call would say."""
    with pytest.raises(TypeError, match="f: got 2 positional arguments"):
        laws.jvp(cube(), (x, x))
    with pytest.raises(ValueError, match=re.escape("f: argument 0 (x) has 0 dimensions")):
        laws.jvp(cube(), (np.array(1.0),))
    with pytest.raises(TypeError, match="power"):
        laws.jvp(power(), (x,))


# Properties of the laws ---------------------------------------------------------------------------

fewer = 1 + settings.default.max_examples // 3
numbers = st.floats(-100, 100).map(lambda x: round(x, 3))
vectors = st.lists(numbers, min_size=2, max_size=4).map(np.array)


@settings(max_examples=fewer)
@given(factor=st.floats(-4, 4), x=vectors, seed=st.integers(0, 99))
def test_any_wrong_factor_is_found(factor, x, seed):
    """And the right one is not, wherever it is tried."""
    hypothesis.assume(np.any(np.abs(x) > 0.1))
    laws.jvp(_cube, (x,), seed=seed)
    laws.adjoint(_cube, (x,), seed=seed)
    hypothesis.assume(abs(factor - 1) > 1e-4)
    _factor[0] = factor
    for law in ("jvp", "adjoint"):
        assert f"violates `{law}`" in str(broken(law, _scaled[law], x, seed=seed))


_cube = cube()
_factor = [1.0]
_scaled = {
    "jvp": cube(jvp=lambda p, t: _factor[0] * 3 * p[0] ** 2 * t[0]),
    "adjoint": cube(vjp=lambda p, ct: _factor[0] * 3 * p[0] ** 2 * ct),
}


@settings(max_examples=fewer)
@given(x=vectors, seed=st.integers(0, 99), data=st.data())
def test_any_wrong_matrix_is_found(x, seed, data):
    n = len(x)
    rows = st.lists(st.integers(-5, 5), min_size=n, max_size=n)
    a = np.array(data.draw(st.lists(rows, min_size=n, max_size=n)), float)
    b = np.array(data.draw(st.lists(rows, min_size=n, max_size=n)), float)
    _matrices[:] = a, a.T
    laws.adjoint(_matrix, (x,), seed=seed)
    laws.linear(_matrix, (x,), seed=seed)
    _matrices[:] = a, b.T
    if np.array_equal(a, b):
        laws.adjoint(_matrix, (x,), seed=seed)
        return
    with pytest.raises(LawViolation):  # w (a - b) v may be zero by chance, but hardly each time
        for more in range(4):
            laws.adjoint(_matrix, (x,), seed=seed + more)


_matrices = [np.eye(1), np.eye(1)]
_matrix = bound(
    lambda x: _matrices[0] @ x,
    linear=True,
    rules={"transpose": lambda ct: _matrices[1] @ ct},
)


@settings(max_examples=fewer)
@given(x=vectors, y=vectors, seed=st.integers(0, 99))
def test_the_real_and_the_complex_adjoint(x, y, seed):
    """The adjoint of the FFT in place of its transpose is wrong for complex numbers; both agree
    where the rule is right."""
    n = min(len(x), len(y))
    hypothesis.assume(n > 2)  # the FFT of two numbers is real
    z = x[:n] + 1j * y[:n]
    laws.adjoint(_fft, (z,), seed=seed)
    laws.linear(_fft, (z,), seed=seed)
    laws.transpose_transpose(_fft, (z,), seed=seed)
    with pytest.raises(LawViolation):
        for more in range(4):
            laws.adjoint(_adjoint, (z,), seed=seed + more)


_fft, _adjoint = fft(), fft(adjoint_of_fft)

# Tolerances ---------------------------------------------------------------------------------------


def drifting():
    calls = []
    return bound(lambda x: calls.append(0) or x * (1 + 1e-4 * len(calls)))


def slightly_more_than_transposed():
    f = bound(lambda x: x.copy(), linear=True)
    f.def_transpose(lambda ct: 1.0001 * ct, traced=True)
    return f


def other_in_loops():
    return bound(lambda x: x + 1e-4 * (x.ndim > 1), vectorized=True)


#: bindings that are off by about 1e-4
SLIGHTLY = {
    "jvp": lambda: cube(jvp=lambda p, t: 3.0003 * p[0] ** 2 * t[0]),
    "jvp_linear": lambda: cube(jvp=lambda p, t: 3 * p[0] ** 2 * (t[0] + 1e-4 * np.abs(t[0]))),
    "adjoint": lambda: cube(vjp=lambda p, ct: 3.0003 * p[0] ** 2 * ct),
    "higher": lambda: cube(jvp_jvp=lambda p, t: 6.0006 * p[0][0] * p[1][0] * t[0][0]),
    "linear": lambda: bound(lambda x: x + 1e-5 * x**3, linear=True),
    "jit": drifting,
    "export": drifting,
    "transpose_transpose": slightly_more_than_transposed,
    "vmap": other_in_loops,
    "loop_dims": other_in_loops,
    "sharded": other_in_loops,
}


@pytest.mark.parametrize("law", SLIGHTLY)
def test_rtol(law):
    check = laws.LAWS[law]
    broken(law, SLIGHTLY[law](), x, seed=1)
    broken(law, SLIGHTLY[law](), x, seed=1, rtol=1e-7)
    check(SLIGHTLY[law](), (x,), seed=1, rtol=1e-2)


@pytest.mark.parametrize("law", SLIGHTLY)
def test_atol(law):
    broken(law, SLIGHTLY[law](), x, seed=1, atol=1e-9)
    laws.LAWS[law](SLIGHTLY[law](), (x,), seed=1, atol=0.1)


def test_tolerances_of_a_whole_check():
    f = cube(jvp=lambda p, t: 3.0003 * p[0] ** 2 * t[0])
    assert violation_of(f, laws=["jvp"], seed=0).law == "jvp"
    testing.check(f, laws=["jvp"], seed=0, rtol=1e-3)


@pytest.mark.parametrize("function", [np.abs, np.sort, lambda x: np.maximum(x, 0)])
def test_linear_on_a_ray(function):
    broken("linear", bound(lambda x: function(x), linear=True), x)


@settings(max_examples=fewer)
@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.0, 0.5, 2.0]))
def test_a_pullback_alone_is_judged_where_the_function_is_smooth(seed, rate):
    """Also where some derivative is zero by chance: there is no pushforward to compare with."""
    f = bound(lambda t, rate: np.exp(-rate * t), "(n),()->(n)")

    @f.def_vjp
    def _(primals, cotangent):
        weighted = np.exp(-primals[1] * primals[0]) * cotangent
        return -primals[1] * weighted, -np.sum(primals[0] * weighted)

    laws.adjoint(f, (np.linspace(0.0, 1.0, 5), np.array(rate)), seed=seed)


@pytest.mark.parametrize("law", ["jvp", "dtypes"])
def test_compute_dtype_float32(law):
    """Right, and declared as what it is: the messages advise it."""
    f = bound(lambda x: np.sin(x), compute_dtype="float32")
    f.def_jvp(lambda p, t: np.cos(p[0]) * t[0])
    laws.LAWS[law](f, (np.array([1.5625, 0.3]),))


def test_wrong_at_zero_only():
    f = bound(lambda x: x * x)
    f.def_jvp(lambda p, t: np.where(p[0] == 0, 5.0, 2 * p[0]) * t[0])
    broken("jvp", f, np.array([0.0]))


# What is global stays as it is --------------------------------------------------------------------


def settings_now():
    return (
        jax.config.jax_enable_x64,
        jax.config.jax_numpy_dtype_promotion,
        jax.config.jax_debug_nans,
        np.geterr(),
        np.get_printoptions(),
        sys.getswitchinterval(),
        settings.default.max_examples,
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )


@pytest.mark.parametrize("wide", [False, True], ids=["x32", "x64"])
@pytest.mark.parametrize("law", every(3, TABLE))
def test_settings_are_kept(law, wide):
    row = TABLE[law]
    with jax.enable_x64(wide), np.errstate(over="raise", divide="warn"):
        before = settings_now()
        laws.LAWS[law](row.right(), row.args, **row.keywords)
        assert settings_now() == before
        broken(law, row.wrong(), *row.args, **row.keywords)
        assert settings_now() == before


@pytest.mark.slow
def test_settings_are_kept_by_a_check():
    with jax.enable_x64(False), np.errstate(divide="ignore"):
        before = settings_now()
        testing.check(cube(), max_examples=5, seed=0)
        violation_of(cube(jvp=lambda p, t: 0 * t[0]), max_examples=5, seed=0)
        assert settings_now() == before
        assert jax.numpy.asarray(1.0).dtype == np.float32


# What a violation says ----------------------------------------------------------------------------


def test_attributes():
    violation = broken("adjoint", fft(adjoint_of_fft), z)
    assert isinstance(violation, AssertionError)
    assert type(violation).__module__ == "jaxbind.testing"
    assert type(violation).__qualname__ == "LawViolation"
    assert violation.law == "adjoint"
    assert violation.binding == "fft"
    assert violation.statement == "<w, J v> = <Jᵀ w, v>" == laws.adjoint.statement
    assert violation.example == "fft(array([ 1.+2.j , -0.-0.5j, 3.+0.j ]))"
    assert re.fullmatch(
        r"got  <w, J v> = \S+j   and   <Jᵀ w, v> = \S+j, differentiating \w+", violation.found
    )
    assert violation.diagnosis.kind == "conjugate"
    assert violation.reproduce is None  # of a search only
    assert violation.__cause__ is None and violation.__suppress_context__


def test_text():
    """As laws.md shows it."""
    violation = violation_of(fft(adjoint_of_fft), seed=0, max_examples=100)
    first, at, got, *diagnosis, again = str(violation).splitlines()
    assert first == "fft violates `adjoint`: <w, J v> = <Jᵀ w, v>"
    assert re.fullmatch(r"  at   fft\(array\(\[.*\]\)\)", at)
    assert re.match(r"  got  <w, J v> = \S+   and   <Jᵀ w, v> = \S+", got)
    assert diagnosis == [
        "  def_transpose returns the adjoint (conjugate transpose) Jᴴ; JAX wants the transpose Jᵀ.",
        "  Write conj(adjoint(conj(cotangent))), or simply transpose without conjugating.",
    ]
    assert again == "  reproduce: testing.check(fft, laws=['adjoint'], seed=0)"
    assert violation.diagnosis.kind == "conjugate"
    assert "\n  ".join(violation.diagnosis.text.split("\n")) in str(violation)


def test_text_of_an_error_in_a_rule():
    """The user's own exception, with its place."""

    def rule(primals, tangents):
        raise ZeroDivisionError("in the table")

    text = str(broken("jvp", cube(jvp=rule), x))
    assert text.startswith("f violates `jvp`: the pushforward is the derivative\n  at   f(array(")
    assert "\n  got  ZeroDivisionError: in the table\n    raised in f.jvp" in text
    assert all(line.startswith("  ") for line in text.splitlines()[1:])
    assert "raise ZeroDivisionError" in text


def test_the_shortest_example():
    """Hypothesis shrinks it to the fewest elements, and few digits."""
    f = cube(vjp=lambda p, ct: np.where(p[0].size > 1, 1, 2) * 1.5 * p[0] ** 2 * ct)
    violation = violation_of(f, laws=["adjoint"], seed=0, dtypes=float)
    (array,) = violation.case.leaves
    assert array.size == 2
    assert np.all(array == array.round())


def test_long_arguments_are_abbreviated():
    violation = broken("jvp", cube(jvp=lambda p, t: p[0] * t[0]), np.arange(1000.0))
    assert len(violation.example) < 200
    assert "..." in violation.example


def test_pickle():
    for again in (copy.copy, lambda v: pickle.loads(pickle.dumps(v))):
        violation = LawViolation("jvp", "f", "says", "got  1 and 2", example="f(1)")
        assert str(again(violation)) == str(violation)


# Finding it again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("law, seed", [("jvp", 1), ("vmap", 2**32 - 1), ("adjoint", 0)])
def test_seed(law, seed):
    """The same message, from a binding made afresh."""
    wrong = TABLE[law].wrong if law != "adjoint" else lambda: fft(adjoint_of_fft)
    first, second = (violation_of(wrong(), laws=[law], seed=seed) for _ in range(2))
    assert str(first) == str(second)
    assert f"seed={seed}" in first.reproduce


def test_other_seeds_draw_other_examples():
    def drawn(seed):
        seen = []
        f = bound(lambda x: (seen.append(x.tobytes()), x**3)[1])
        testing.report(f, laws=["deterministic"], seed=seed, dtypes=float, max_examples=20)
        return seen

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_reproduce():
    """What is printed finds the same example."""
    fft_ = fft(adjoint_of_fft)
    for keywords in ({}, {"max_examples": 60}):
        violation = violation_of(fft_, laws=["linear", "adjoint"], **keywords)
        again = re.sub(r"check\(fft,", "check(fft_,", violation.reproduce)
        with pytest.raises(LawViolation) as caught:
            eval(again, {"testing": testing, "fft_": fft_})
        assert str(caught.value) == str(violation)


@pytest.mark.parametrize("keywords", [{"elements": st.floats(5, 6)}, {"dtypes": np.float32}])
def test_reproduce_with_other_keywords(keywords):
    f = cube(jvp=lambda p, t: p[0] ** 2 * t[0])
    (name,) = keywords
    assert name in violation_of(f, laws=["jvp"], **keywords).reproduce


@pytest.fixture
def profile():
    """Load a profile of Hypothesis for one test."""

    def load(**options):
        settings.register_profile("of a test", deadline=None, **options)
        settings.load_profile("of a test")

    yield load
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.mark.slow
def test_derandomize(profile):
    profile(derandomize=True, max_examples=25, database=None)
    keywords = {"laws": ["adjoint"], "dtypes": complex}
    first, second = (violation_of(fft(adjoint_of_fft), **keywords) for _ in range(2))
    assert str(first) == str(second)
    profile(derandomize=False, max_examples=25)
    seeds = {violation_of(fft(adjoint_of_fft), **keywords).reproduce for _ in range(3)}
    assert len(seeds) == 3


def test_max_examples_of_the_profile(profile):
    def examples(**keywords):
        report = testing.report(cube(), laws=["jvp", "vmap"], seed=0, dtypes=float, **keywords)
        return {name: found.examples for name, found in report.rows[0].results.items()}

    profile(max_examples=20)
    few = examples()
    profile(max_examples=100)
    many = examples()
    assert 5 <= few["jvp"] <= 40
    assert 40 <= many["jvp"] <= 120
    assert few["vmap"] < few["jvp"] and many["vmap"] < many["jvp"]  # they cost more
    assert examples(max_examples=20) == few


# In a process of its own --------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]


def run(script, **environment):
    """Run a script as a user does."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **environment},
    )


SCRIPT = """
    import numpy as np, jaxbind
    from jaxbind import testing
    fft = jaxbind.bind(np.fft.fft, "(n)->(n)", linear=True)
    fft.def_transpose(lambda ct: ct.shape[-1] * np.fft.ifft(ct))
    testing.check(fft, seed=0)
"""


@pytest.fixture(scope="module")
def traceback_text():
    done = run(SCRIPT)
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


def test_the_traceback_is_short(traceback_text):
    """The user's line, ours, and the message."""
    assert traceback_text.count('File "') == 2
    assert "testing.check(fft, seed=0)" in traceback_text or "<string>" in traceback_text
    assert (
        "\njaxbind.testing.LawViolation: fft violates `adjoint`: <w, J v> = <Jᵀ w, v>\n  at  "
        in (traceback_text)
    )
    assert "During handling" not in traceback_text
    assert "hypothesis" not in traceback_text


def test_no_noise_in_the_traceback(traceback_text):
    for noise in ("Failing test case", "Falsifying example", "Explanation", "You can reproduce"):
        assert noise not in traceback_text
    assert traceback_text.splitlines()[-1].startswith("  reproduce: testing.check(fft, ")


def test_dtypes_that_were_asked_for_are_judged():
    """NumPy's complex log1p loses digits near 0, which does not matter where dtypes= is real."""
    log1p = jaxbind.bind(lambda x: np.log1p(x), "()->()", name="log1p")
    elements = st.floats(1e-7, 1e-5)
    for dtypes in (np.float64, [np.float32, np.float64]):
        testing.check(log1p, elements=elements, dtypes=dtypes, laws=["dtypes"], max_examples=20)
    single = jaxbind.bind(lambda x: np.float32(x).astype(x.dtype) * 3, "()->()", name="single")
    with pytest.raises(testing.LawViolation):
        testing.check(single, dtypes=np.float64, laws=["dtypes"], max_examples=20)


def test_jumps_are_no_memory():
    """Rounding alone leads from one step to the next."""
    f = jaxbind.bind(lambda x, *, step: np.floor(x / step) * step, "()->()")
    statics = [{"step": 1.0}, {"step": 0.5}]
    for seed in range(4):
        for value in (-3.0, 2.0, 0.5):
            laws.static(f, (np.array(value),), seed=seed, statics=statics, static=statics[0])


def test_a_small_error_is_no_conjugate():
    pi = float(np.float32(np.pi))
    f = jaxbind.bind(lambda x: np.sin(np.pi * x), "()->()", vectorized=True, name="f")
    f.def_jvp(lambda p, t: pi * np.cos(np.pi * p[0]) * t[0])
    text = violation_of(f, seed=0, laws=["jvp"]).diagnosis.text
    assert "gives 1.000000028 times what it should (a constant in float32, or of too few" in text
    g = jaxbind.bind(np.sin, "()->()", vectorized=True, name="g")
    g.def_jvp(lambda p, t: (1 + 1e-6) * np.cos(p[0]) * t[0])
    assert "gives 1.000001 times" in violation_of(g, seed=0, laws=["jvp"]).diagnosis.text


def test_what_is_zero_at_some_operands_only():
    f = jaxbind.bind(lambda x: x**2, "()->()", vectorized=True, dtype=float, name="f")
    f.def_jvp(lambda p, t: np.where(np.abs(p[0]) > 5, 0, 2 * p[0]) * t[0])
    found = violation_of(f, seed=0, laws=["jvp"], dtypes=float).diagnosis
    assert found is None or "whatever it is given" not in found.text


def test_complex_operands_that_nobody_asked_for():
    """The message says what to do about them."""
    f = jaxbind.bind(lambda x: np.exp(1j * x), "()->()", vectorized=True, dtype=complex, name="f")
    f.def_jvp(lambda p, t: 1j * np.exp(1j * p[0]) * t[0])
    f.def_vjp(lambda p, ct: np.real(1j * np.exp(1j * p[0]) * ct))
    testing.check(f, laws=["adjoint"], seed=0, dtypes=float)
    testing.check(f, laws=["adjoint"], seed=0, elements=st.floats(-5, 5))
    assert "say dtypes=float" in str(violation_of(f, seed=0, laws=["adjoint"]))


def test_a_function_that_writes_into_its_operand():
    @jaxbind.bind("(n)->(n)")
    def centred(x):
        x -= 1.0
        return x

    with pytest.raises(ValueError, match=re.escape("work on a copy (x = x.copy())")):
        testing.check(centred, seed=0)
