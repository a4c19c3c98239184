"""Errors are part of the interface: what a user reads when something is wrong."""

import gc
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

x = np.arange(3.0)
y = np.arange(4.0)


@jaxbind.bind("(n),(n)->()")
def dot(x, y):
    return x @ y


def says(error, text):
    return pytest.raises(error, match=re.escape(text))


# When a call is traced ----------------------------------------------------------------------------


def test_core_dimension():
    with says(
        ValueError,
        "dot: size 4 of core dimension n in argument 1 (y) differs from size 3 in argument 0 (x)",
    ):
        dot(x, y)
    fixed = jaxbind.bind(lambda a: a, "(3)->(3)")
    with says(ValueError, "size 4 of a core dimension in argument 0 (a) differs from the fixed"):
        fixed(y)


def test_count_and_rank():
    with says(TypeError, "dot: got 1 positional argument; it takes 2 (x, y)"):
        dot(x)
    with says(TypeError, "dot: got 3 positional arguments; it takes 2 (x, y)"):
        jax.jit(dot)(x, x, x)
    with says(ValueError, "dot: argument 1 (y) has 0 dimensions, but its core dimensions are (n)"):
        dot(x, 1.0)
    with says(TypeError, "dot: got 3 operand arrays; the signature (n),(n)->() has 2"):
        dot([1.0, 2.0], x)


def test_loop_dimensions_that_do_not_broadcast():
    with says(ValueError, "argument 0 (x) has (2,), argument 1 (y) has (4,) in front"):
        dot(np.ones((2, 3)), np.ones((4, 3)))


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "float4_e2m1fn"])
def test_packed_dtypes_are_refused(dtype):
    operand = jnp.ones(3, dtype)
    for call in (dot, jax.jit(dot), lambda *a: jax.eval_shape(dot, *a)):
        with says(TypeError, f"dot: argument 1 (y) has dtype {dtype}, which cannot cross"):
            call(x, operand)
    with says(TypeError, "Accepted: bool, int8 to int64"):
        dot(x, operand)


def test_typed_keys_and_float0_are_refused():
    with says(TypeError, "pass jax.random.key_data(key)"):
        dot(x, jax.random.split(jax.random.key(0), 3))
    with says(TypeError, "argument 1 (y) has dtype float0"):
        jax.jit(dot)(x, np.zeros(3, jax.dtypes.float0))


def test_operands_that_are_no_arrays():
    with says(TypeError, "dot: argument 1 (y) is a str; operands are arrays, numbers, or"):
        dot(x, "text")


def test_static_parameters():
    f = jaxbind.bind(lambda x, *, n, m=2: x * n * m, "(n)->(n)", name="f")
    with says(TypeError, "f: static parameter n=[3] is unhashable (list)"):
        f(x, n=[3])
    with says(TypeError, "f: static parameter m=array([1., 1.]) is unhashable (ndarray)"):
        f(x, n=1.0, m=np.ones(2))
    with says(TypeError, "f: missing the static keyword argument n="):
        f(x)
    with says(TypeError, "f: unexpected keyword argument k=1; it takes n, m"):
        f(x, n=1, k=1)


# When something is declared -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({}, TypeError, "neither a signature nor out= is given"),
        ({"out": "guess"}, TypeError, "out='guess' is not understood"),
        ({"out": 3}, None, ""),
        ({"order": "A", "out": "infer"}, ValueError, "order='A' is not understood"),
        ({"linear": ("z",), "out": "infer"}, TypeError, "linear= names 'z', which is no argument"),
        ({"nondiff": 5, "out": "infer"}, TypeError, "nondiff= names 5"),
        ({"compute_dtype": "text", "out": "infer"}, TypeError, "compute_dtype='text' is no dtype"),
        ({"compute_dtype": bool, "out": "infer"}, TypeError, "is no number type"),
        ({"dtype": "f4", "out": "infer"}, TypeError, "goes with a signature"),
        (
            {"linear": "a", "nondiff": "a", "out": "infer"},
            TypeError,
            "argument 0 is named in more than one",
        ),
    ],
)
def test_options(options, error, text):
    def function(a, b):
        return a

    if error is None:
        bound = jaxbind.bind(function, **options)
        with says(TypeError, "function: out= gives 3, which has no shape and dtype"):
            bound(x, x)
        return
    with says(error, text):
        jaxbind.bind(function, **options)


@pytest.mark.parametrize(
    "signature, text",
    [
        ("(n)", "must contain '->' once"),
        ("(n)->", "has no output"),
        ("n->n", "cannot read 'n'"),
        ("(n)->(m)", "core dimension m stands only in an output"),
        ("(n-1)->(n)", "'n-1' is no core dimension"),
        ("(n?),(n)->()", "must carry '?' wherever it"),
        ("(n)->(n|1)", "broadcasts, which is possible in inputs only"),
        ("(3|1)->()", "combines '|1' with a fixed size"),
    ],
)
def test_signatures(signature, text):
    with says(ValueError, text):
        jaxbind.bind(lambda a: a, signature)


def test_not_callable_or_bound_already():
    with says(TypeError, "a int is not callable"):
        jaxbind.bind(3, "()->()")
    with says(TypeError, "it is bound already; bind dot.function"):
        jaxbind.bind(dot, "()->()")
    with says(TypeError, "signature (n)->() has 1 inputs, but the function has 2"):
        jaxbind.bind("(n)->()")(lambda a, b: a)


# Missing rules ------------------------------------------------------------------------------------


def test_missing_rules():
    with says(
        TypeError, "dot: no derivative with respect to argument 0 (x): give dot.def_vjp(rule)"
    ):
        jax.grad(dot)(x, x)
    with says(TypeError, "with respect to argument 1 (y): give"):
        jax.jit(jax.grad(dot, 1))(x, x)

    only_vjp = jaxbind.bind(lambda v: np.sin(v), "()->()", name="only_vjp")
    only_vjp.def_vjp(lambda primals, ct: np.cos(primals[0]) * ct)
    assert jax.grad(only_vjp)(0.0) == 1.0
    with says(TypeError, "only_vjp: forward-mode differentiation (jax.jvp, jax.jacfwd"):
        jax.jvp(only_vjp, (0.0,), (1.0,))
    with says(TypeError, "with respect to argument 0 (v) needs only_vjp.def_jvp(rule)"):
        jax.jit(jax.jacfwd(only_vjp))(0.0)
    with says(TypeError, "only_vjp.vjp: no derivative with respect to argument 0 (primals)"):
        jax.grad(jax.grad(only_vjp))(0.0)

    only_jvp = jaxbind.bind(lambda v: np.sin(v), "()->()", name="only_jvp")
    only_jvp.def_jvp(lambda primals, t: np.cos(primals[0]) * t[0])
    assert jax.jvp(only_jvp, (0.0,), (1.0,))[1] == 1.0
    with says(TypeError, "with respect to argument 0 (v) needs only_jvp.def_vjp(rule)"):
        jax.grad(only_jvp)(0.0)


def test_missing_transposes():
    linear = jaxbind.bind(lambda v: 2 * v, "(n)->(n)", linear=True, name="twice")
    with says(TypeError, "twice: transposing with respect to argument 0 (v) (jax.grad, jax.vjp"):
        jax.grad(lambda v: linear(v).sum())(x)
    bilinear = jaxbind.bind(lambda a, b: a * b, "(),()->()", multilinear=("a", "b"), name="times")
    bilinear.def_transpose("a")(lambda b, ct: ct * b)
    assert jax.grad(bilinear)(2.0, 3.0) == 3.0
    with says(TypeError, "needs times.def_transpose('b')(rule)"):
        jax.grad(bilinear, 1)(2.0, 3.0)
    with says(TypeError, "times: say in which argument the rule transposes"):
        bilinear.def_transpose(lambda *a: a)
    with says(TypeError, "dot: def_transpose is for functions declared linear"):
        dot.def_transpose(lambda *a: a)
    with says(TypeError, "dot: cannot be transposed with respect to argument 0 (x), in which"):
        jax.linear_transpose(lambda v: dot(v, x), x)(1.0)


def test_arguments_without_derivative():
    f = jaxbind.bind(lambda a, b: a * b, "(),()->()", nondiff="b", name="f")
    f.def_vjp(lambda primals, ct: (primals[1] * ct, None))
    assert jax.grad(f)(2.0, 3.0) == 3.0
    with says(TypeError, "f: not differentiable with respect to argument 1 (b), which is declared"):
        jax.grad(f, 1)(2.0, 3.0)
    g = jaxbind.bind(lambda a, b: a * b, "(),()->()", name="g")
    g.def_partials(lambda a, b: b, None)
    with says(TypeError, "g: no derivative with respect to argument 1 (b): its rule"):
        jax.grad(g, 1)(2.0, 3.0)


def test_rules_that_return_something_else():
    f = jaxbind.bind(lambda a: a * 2, "(n)->(n)", name="f")
    f.def_vjp(lambda primals, ct: ct[:2])
    with says(jax.errors.JaxRuntimeError, "f.vjp returned float64[2] for its result"):
        jax.grad(lambda a: f(a).sum())(x)
    g = jaxbind.bind(lambda a, b: a * b, "(),()->()", name="g")
    g.def_vjp(lambda primals, ct: (ct, None))
    with says(jax.errors.JaxRuntimeError, "g.vjp returned None for result 1 of (array, array)"):
        jax.grad(g, (0, 1))(1.0, 2.0)
    h = jaxbind.bind(lambda a: a * 2, "(n)->(n)", name="h")
    h.def_jvp(lambda primals, tangents: tangents[0][:2], traced=True)
    with says(TypeError, "h.jvp returned float64[2] for result 0; wanted float64[3]"):
        jax.jvp(h, (x,), (x,))


# While a function runs ----------------------------------------------------------------------------

failure = pytest.mark.parametrize(
    "run",
    [
        lambda f, *a: f(*a),
        lambda f, *a: jax.jit(f)(*a),
        lambda f, *a: jax.vmap(f)(*(v[None] for v in a)),
    ],
    ids=["eager", "jit", "vmap"],
)


def fails(text):
    return pytest.raises(jax.errors.JaxRuntimeError, match=re.escape(text))


def careless(v, w):
    raise ValueError("the flux capacitor is empty: ∇ü")


@failure
def test_an_exception_names_binding_operands_and_line(run):
    bound = jaxbind.bind(careless, "(n),(m)->(n)")
    with fails("ValueError: the flux capacitor is empty: ∇ü") as caught:
        np.asarray(run(bound, x, y.astype("float32")))
    text = str(caught.value)
    assert "raised in careless\n  called with v: float64[3], w: float32[4]" in text
    line = careless.__code__.co_firstlineno + 1
    assert f'{__file__}", line {line}, in careless' in text
    assert "_pycall" not in text and "jaxbind/" not in text.replace(__file__, "")


def test_an_exception_in_a_loop_names_the_iteration():
    def third(v):
        if v == 2.0:
            raise RuntimeError("two")
        return v

    with fails("in iteration 2 of 4 over its loop dimensions"):
        jax.jit(jaxbind.bind(third, "()->()"))(y)


@pytest.mark.parametrize(
    "function, text",
    [
        (lambda v: v[:2], "returned float64[2] for its result; its declared shape and dtype are"),
        (lambda v: v.astype("float32"), "returned float32[3] for its result"),
        (lambda v: v > 0, "returned bool[3] for its result"),
        (lambda v: None, "returned None for its result; it must return an array: float64[3]"),
        (lambda v: "text", "returned 'text' (str) for its result; it must return an array"),
        (lambda v: (v, v), "returned a tuple of 2 for its result"),
        (lambda v: v + 1j, "returned complex128[3] for its result"),
        (lambda v: object(), "for its result; it must return an array"),
    ],
)
@failure
def test_wrong_returns(function, text, run):
    with fails(text):
        np.asarray(run(jaxbind.bind(function, "(n)->(n)", name="f"), x))


@pytest.mark.parametrize(
    "function, text",
    [
        (lambda v: v, "f returned float64[3], but its declared result is (array, array)"),
        (lambda v: (v,), "f returned a tuple of 1, but its declared result is (array, array)"),
        (lambda v: (v, v, v), "f returned a tuple of 3, but its declared result is"),
        (lambda v: (v, v[:1]), "f returned float64[1] for result 1"),
    ],
)
def test_wrong_number_of_results(function, text):
    with fails(text):
        jaxbind.bind(function, "(n)->(n),(n)", name="f")(x)


def test_wrong_structure():
    struct = jax.ShapeDtypeStruct((3,), float)
    bound = jaxbind.bind(lambda v: {"b": v}, out={"a": struct}, name="f")
    with fails("f returned a dict of 1, but its declared result is {'a': array}"):
        bound(x)
    both = jaxbind.bind(out=lambda v: v, name="g")(lambda v, *, out: v)
    with fails("g returned float64[3] although it has a parameter `out`"):
        both(x)


def test_writing_into_an_operand():
    def impatient(v):
        v[0] = 1.0
        return v

    with fails("operands are read-only views of JAX's memory; work on a copy (x = x.copy())"):
        jaxbind.bind(impatient, "(n)->(n)")(x)


@pytest.mark.parametrize("keep", [lambda v: v, lambda v: v[1:], lambda v: [{"a": v.T}], iter])
@failure
def test_keeping_a_view(keep, run):
    kept = []

    def hoarder(v):
        kept.append(keep(v))
        return 2 * v

    with fails("hoarder kept a view of argument 0 (v) after it returned"):
        np.asarray(run(jaxbind.bind(hoarder, "(n)->(n)"), x))
    kept.clear()


def test_keeping_the_result():
    kept = []

    def hoarder(v, *, out):
        out[:] = v
        kept.append(out)

    with fails("hoarder kept a view of its result 0 after it returned"):
        jaxbind.bind(hoarder, out=lambda v: v)(x)


def test_a_reference_cycle_is_not_a_kept_view():
    def cyclic(v):
        loop = [v]
        loop.append(loop)
        return 2 * v

    gc.disable()
    try:
        np.testing.assert_array_equal(jaxbind.bind(cyclic, "(n)->(n)")(x), 2 * x)
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, RecursionError])
def test_no_exception_corrupts_anything(error):
    raising = True

    def moody(v):
        if raising:
            raise error
        return 2 * v

    bound = jax.jit(jaxbind.bind(moody, "(n)->(n)"))
    for _ in range(3):
        with fails(error.__name__):
            np.asarray(bound(x))
    raising = False
    np.testing.assert_array_equal(bound(x), 2 * x)


def test_exceptions_that_are_hard_to_show():
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError("no")

    def nul(v):
        raise ValueError("a\0b" + "x" * 100_000)

    def unprintable(v):
        raise Unprintable

    with pytest.raises(jax.errors.JaxRuntimeError, match=r"a\?b"):
        jaxbind.bind(nul, "(n)->(n)")(x)
    with pytest.raises(jax.errors.JaxRuntimeError, match="unprintable"):
        jaxbind.bind(unprintable, "(n)->(n)")(x)


def test_an_old_jax_is_refused():
    from jaxbind._jax import require_supported_version

    with says(ImportError, "jaxbind needs jax >= 0.9.1 (XLA FFI 0.3); found jax 0.9.0"):
        require_supported_version("0.9.0")
    require_supported_version("0.9.1")
    require_supported_version("0.12.0.1")
    require_supported_version("1.0")


def test_other_platforms():
    bound = jaxbind.bind(lambda v: v, "()->()", name="f")
    with says(NotImplementedError, "f: there is no implementation for platform cuda"):
        jax.jit(bound).trace(1.0).lower(lowering_platforms=("cuda",))


@pytest.mark.parametrize("end", ["pass", "raise ValueError('pending')", "raise SystemExit(3)"])
def test_leaving_with_calls_in_flight(end, tmp_path):
    program = f"""
import time
import jax, jax.numpy as jnp
import jaxbind
def slow(x):
    time.sleep(0.3)
    return x
f = jaxbind.bind(slow, "(n)->(n)")
work = jax.jit(lambda x: f(jnp.sort(jnp.sin(x)) @ jnp.ones((len(x), 8))))
work(jnp.ones(1_000_000)), work(jnp.ones(1_000_000))
{end}
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    code = {"p": 0, "V": 1, "S": 3}[end[0] if end == "pass" else end.split()[1][0]]
    assert done.returncode == code, done.stderr
    assert done.stderr == "" or "ValueError: pending" in done.stderr
