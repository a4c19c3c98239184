"""What a saved program remembers of a declaration, and which function it finds by a name."""

import gc
import importlib
import sys
import threading

import jax
import ml_dtypes
import numpy as np
import pytest

import jaxbind
from jaxbind._parameters import Parameters

pytestmark = pytest.mark.usefixtures("x64")
x = np.arange(4.0)
STRUCT = jax.ShapeDtypeStruct


def export(function, *args):
    checks = jaxbind.export_checks()
    exported = jax.export.export(jax.jit(function), disabled_checks=checks)(*args)
    return exported.serialize()


def call(data, *args):
    """Load the program anew, as another process would."""
    jax.clear_caches()
    gc.collect()
    return jax.block_until_ready(jax.export.deserialize(data).call(*args))


def named(function, *declaration, **options):
    return jaxbind.bind(function, *declaration, name="test_contracts.f", **options)


# Names --------------------------------------------------------------------------------------------


def test_a_program_calls_the_last_one_that_was_bound_under_its_name():
    first = jaxbind.bind(lambda x: x + 1, "()->()", name="test_contracts.last")
    data = export(first, 1.0)
    assert first(1.0) == 2 and call(data, 1.0) == 2
    second = jaxbind.bind(lambda x: x + 20, "()->()", name="test_contracts.last")
    assert call(data, 1.0) == 21
    assert first(1.0) == 2 and second(1.0) == 21 and jax.jit(first)(1.0) == 2
    del second
    with pytest.raises(ValueError, match="another one was bound under the name"):
        export(first, 1.0)


def adding(k):
    return lambda x: x + k


def test_functions_of_one_name_are_not_confused_between_threads():
    """Another one is bound, and called, between lowering and compiling."""
    wrong = []

    def work(thread):
        for i in range(40):
            k = 1000.0 * thread + i
            f = jaxbind.bind(adding(k), "()->()", name="test_contracts.same")
            got = float(jax.jit(lambda x, f=f: f(x))(0.0))
            if got != k:
                wrong.append((k, got))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_program_that_was_lowered_keeps_its_function():
    first = jaxbind.bind(lambda x: x + 1, "()->()", name="test_contracts.lowered")
    lowered = jax.jit(first).lower(0.0)
    second = jaxbind.bind(lambda x: x + 2, "()->()", name="test_contracts.lowered")
    assert jax.jit(second)(0.0) == 2
    assert lowered.compile()(0.0) == 1


def test_a_program_calls_what_a_module_defines_after_it_was_reloaded(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "reloaded_module.py"
    text = "import jaxbind\n@jaxbind.bind('()->()')\ndef f(x):\n    return x * FACTOR\n"
    file.write_text(text.replace("FACTOR", "2"))
    module = importlib.import_module("reloaded_module")
    old, data = module.f, export(module.f, 3.0)
    assert call(data, 3.0) == 6 and old(3.0) == 6
    file.write_text(text.replace("FACTOR", "1000"))
    importlib.reload(module)
    assert call(data, 3.0) == 3000
    assert old(3.0) == 6 and module.f(3.0) == 3000
    del sys.modules["reloaded_module"]


def test_a_name_that_was_given_is_not_a_derivatives_name():
    f = jaxbind.bind(lambda x: x**2, "()->()", name="test_contracts.model")
    f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    other = jaxbind.bind(lambda x: -x, "()->()", name="test_contracts.model.jvp")
    assert other(3.0) == -3
    assert jax.jvp(f, (3.0,), (1.0,))[1] == 6
    data = export(lambda x: jax.jvp(f, (x,), (1.0,))[1], 3.0)
    assert call(data, 3.0) == 6 and call(export(other, 3.0), 3.0) == -3


def test_a_name_that_was_given_is_not_an_importable_one():
    module = sys.modules[__name__]
    module.importable = jaxbind.bind(lambda x: x + 1, "()->()")
    given = jaxbind.bind(lambda x: x - 1, "()->()", name=f"{__name__}:importable")
    assert jax.jit(module.importable)(1.0) == 2 and jax.jit(given)(1.0) == 0
    del module.importable


def test_a_module_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "failing_module.py"
    file.write_text("import jaxbind\n@jaxbind.bind('()->()')\ndef f(x):\n    return x\n")
    data = export(importlib.import_module("failing_module").f, 1.0)
    del sys.modules["failing_module"]
    file.write_text("raise RuntimeError('broken')")
    with pytest.raises(
        jax.errors.JaxRuntimeError,
        match="module failing_module, which should define f, fails: RuntimeError: broken",
    ):
        call(data, 1.0)


# Contracts ----------------------------------------------------------------------------------------


def plain(x):
    return x - x.mean()


def scaled(x, *, k):
    return k * x


def renamed(x, *, extra=5):
    return extra * x


def filled(x, out):
    out[...] = x[: out.size]


def two(x, y):
    return x - y


CHANGES = {
    "vectorized": ((plain, "(n)->(n)"), {"vectorized": True}, {},
                   "had the vectorized= True; it is \\(none\\) now"),
    "static gone": ((scaled, "(n)->(n)"), {}, {"function": lambda x: x},
                    "had the static parameters k; it is \\(none\\) now"),
    "static renamed": ((scaled, "(n)->(n)"), {}, {"function": renamed},
                       "had the static parameters k; it is extra now"),
    "static new": ((plain, "(n)->(n)"), {}, {"function": scaled},
                   "had the static parameters \\(none\\); it is k now"),
    "operands": ((two, "(n),(n)->(n)"), {}, {"function": lambda y, x: x - y},
                 "had the operands x, y; it is y, x now"),
    "compute_dtype": ((plain, "(n)->(n)"), {"compute_dtype": "float32"},
                      {"compute_dtype": "float64"},
                      "had the compute_dtype= float32; it is float64 now"),
    "allow_jax": ((plain, "(n)->(n)"), {}, {"allow_jax": True},
                  "had the allow_jax= \\(none\\); it is True now"),
    "out": ((filled,), {"out": STRUCT((3,), float)}, {"out": STRUCT((2,), float)},
            "had the results float64\\[3\\]; it is float64\\[2\\] now"),
    "out's dtype": ((filled,), {"out": STRUCT((3,), float)}, {"out": STRUCT((3,), "float32")},
                    "had the results float64\\[3\\]; it is float32\\[3\\] now"),
    "out a function": ((filled,), {"out": lambda x: STRUCT((3,), x.dtype)},
                       {"out": lambda x: STRUCT((2,), x.dtype)},
                       "had the results \\(\\(\\(3,\\), 'float64'\\),\\); it is "
                       "\\(\\(\\(2,\\), 'float64'\\),\\) now"),
    "dtype": ((filled, "(n)->(n)"), {"dtype": "float32"}, {"dtype": "float64"},
              "had the results float32; it is float64 now"),
    "linear": ((two, "(n),(n)->(n)"), {"linear": True}, {"linear": "x"},
               "had the linear= True; it is \\[0\\] now"),
    "aliases": ((plain, "(n)->(n)"), {"aliases": {"x": 0}}, {},
                "had the aliases= {0: 0}; it is \\(none\\) now"),
    "several": ((plain, "(n)->(n)"), {"effect": "unordered"}, {"order": "F"},
                "had the effect= unordered; it is \\(none\\) now, and the order= \\(none\\); it is F"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_what_was_declared_otherwise_is_refused(kind):
    (function, *declaration), before, after, text = CHANGES[kind]
    binding = named(function, *declaration, **before)
    count = len(Parameters.of(function).operands)
    args, static = count * (x,), {"k": 7} if function is scaled else {}
    data = export(lambda *args: binding(*args, **static), *args)
    call(data, *args)
    after = dict(after)
    function = after.pop("function", function)
    again = named(function, *declaration, **after)
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"the program was made when .* {text}"):
        call(data, *args)
    del again


def test_what_was_declared_alike_is_called():
    out = lambda x, *, k: (STRUCT((k,), x.dtype), STRUCT((), "int32"))
    options = {"out": out, "nondiff": "x"}
    body = lambda x, *, k: (np.resize(x, k), np.int32(k))
    f = named(body, **options)
    data = export(lambda x: f(x, k=6), x)
    again = named(lambda x, *, k: (-np.resize(x, k), np.int32(-k)), threads=2, **options)
    operand = jax.device_put(x)
    with jax.enable_x64(False):  # results of a program do not depend on the mode it is loaded in
        got = call(data, operand)
    np.testing.assert_array_equal(got[0], -np.resize(x, 6))
    assert got[1] == -6
    del again


def test_symbolic_shapes_with_out_a_function():
    f = named(lambda x: x * 2, out=lambda x: x)
    n = jax.export.symbolic_shape("n")[0]
    data = export(f, STRUCT((n,), float))
    for size in (1, 5):
        np.testing.assert_array_equal(call(data, np.arange(size) + 1.0), 2 * np.arange(size) + 2)


# Static parameters --------------------------------------------------------------------------------

VALUES = [
    float("nan"), float("-inf"), complex(float("nan"), -0.0), np.float64(2.5), np.float32("nan"),
    np.int8(-3), np.bool_(True), np.complex64(1 + 2j), np.str_("ä"), ml_dtypes.bfloat16(1.5),
    (1, (np.uint16(2), float("inf")), "nan"), b"\0", None, "float",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_static_values_reach_a_program_that_is_loaded_as_they_were(value):
    seen = []
    f = named(lambda x, *, k: seen.append(k) or x, "()->()")
    call(export(lambda x: f(x, k=value), 1.0), 1.0)
    assert seen and all(type(s) is type(value) and repr(s) == repr(value) for s in seen)


# Ordered effects ----------------------------------------------------------------------------------


def test_ordered_effects_of_symbolic_shapes_are_refused_when_they_are_exported():
    f = named(lambda x: x + 1, "(n)->(n)", effect="ordered")
    n = jax.export.symbolic_shape("n")[0]
    with pytest.raises(
        NotImplementedError,
        match="test_contracts.f cannot be exported with results of symbolic shapes: .*'unordered'",
    ):
        export(f, STRUCT((n,), float))
    np.testing.assert_array_equal(call(export(f, x), x), x + 1)
    g = named(lambda x: x.sum(), "(n)->()", effect="ordered")
    assert call(export(g, STRUCT((n,), float)), x) == 6
