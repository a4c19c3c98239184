"""Errors are part of the interface: what a user reads when a declaration or call is wrong."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from failing import ROUTES, elementwise, message, x

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")


@jaxbind.bind("(n),(n)->()")
def dot(x, y):
    return x @ y


def says(error, text):
    return pytest.raises(error, match=re.escape(text))


# When a call is traced ----------------------------------------------------------------------------

CALLS = {
    "eager": lambda *a: dot(*a),
    "jit": lambda *a: jax.jit(dot)(*a),
    "eval_shape": lambda *a: jax.eval_shape(dot, *a),
    "grad": lambda *a: jax.grad(lambda v, *w: dot(v, *w))(*a),
}


@pytest.mark.parametrize("call", CALLS)
def test_core_dimensions(call):
    says = "dot: size 4 of core dimension n in argument 1 (y) differs from size 3 in argument 0 (x)"
    assert says in message(CALLS[call], x, np.arange(4.0), error=ValueError)
    says = "dot: argument 1 (y) has 0 dimensions, but its core dimensions are (n) in the signature"
    assert says in message(CALLS[call], x, 1.0, error=ValueError)


def test_core_dimensions_under_vmap():
    both = jax.vmap(dot)
    text = message(both, np.ones((2, 3)), np.ones((2, 4)), error=ValueError)
    assert "size 4 of core dimension n in argument 1 (y) differs from size 3" in text
    text = message(both, np.ones(2), np.ones((2, 3)), error=ValueError)
    assert "dot: argument 0 (x) has 0 dimensions, but its core dimensions are (n)" in text


def test_loop_dimensions():
    text = message(dot, np.ones((2, 3)), np.ones((4, 3)), error=ValueError)
    assert "dot: loop dimensions do not broadcast: argument 0 (x) has (2,), argument 1 (y)" in text


def test_counts():
    assert "dot: got 1 positional argument; it takes 2 (x, y)" in message(dot, x, error=TypeError)
    text = message(dot, x, None, error=TypeError)
    assert "got 1 operand array; the signature (n),(n)->() has 2. argument 1 (y) is None" in text
    assert "dot: got 3 positional arguments; it takes 2" in message(dot, x, x, x, error=TypeError)
    text = message(dot, [1.0, 2.0], x, error=TypeError)
    assert "dot: got 3 operand arrays; the signature (n),(n)->() has 2. argument 0 (x[0])" in text
    assert "pass jnp.asarray(...) for one array" in text


def test_errors_before_the_call_have_no_jax_internals():
    """They are raised where the user called, in the type that Python would use."""
    with pytest.raises(ValueError) as caught:
        jax.jit(lambda v: dot(v, np.ones(4)) * 2)(x)
    assert not isinstance(caught.value, jax.errors.JaxRuntimeError)
    assert caught.value.__cause__ is None


def test_operands_that_are_no_arrays():
    with says(TypeError, "dot: argument 1 (y) is a str; operands are arrays, numbers, or"):
        dot(x, "text")


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


def test_missing_rules_of_derivatives_called_directly():
    f = jaxbind.bind(lambda v: np.sin(v), "()->()", name="f")
    with says(TypeError, "f: no derivative with respect to argument 0 (v): give f.def_vjp(rule)"):
        f.jvp((0.0,), (1.0,))
    with says(TypeError, "f: def_transpose is for functions declared linear (bind(...,"):
        f.transpose  # noqa: B018
    f.def_jvp("from-vjp")
    with says(TypeError, "needs f.def_vjp(rule), from which f.def_jvp('from-vjp') makes the push"):
        jax.jvp(f, (0.0,), (1.0,))


def test_what_out_raises_is_told_of():
    f = jaxbind.bind(lambda v: v, out=lambda v: 1 / 0, name="f")
    with pytest.raises(ZeroDivisionError) as caught:
        f(x)
    assert "(in out= of f, for float64[3])" in caught.value.__notes__


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


# Wrong results ------------------------------------------------------------------------------------

WRONG = [
    (lambda v: v[:2], "f returned float64[2] for its result; its declared shape and dtype are"),
    (lambda v: v[None], "f returned float64[1,3] for its result"),
    (lambda v: v.sum(), "f returned float64[] for its result"),
    (lambda v: 1.0, "f returned 1.0 (float) for its result"),
    (lambda v: v.astype("f4"), "f returned float32[3] for its result"),
    (lambda v: v > 1, "f returned bool[3] for its result"),
    (lambda v: v.astype(int), "f returned int64[3] for its result"),
    (lambda v: v * 1j, "f returned complex128[3] for its result"),
    (lambda v: v.astype(">f8"), "f returned >f8[3] for its result"),
    (lambda v: v.astype(object), "f returned object[3] for its result"),
    (lambda v: None, "f returned None for its result; it must return an array: float64[3]"),
    (lambda v: "text", "f returned 'text' (str) for its result; it must return an array"),
    (lambda v: b"abc", "f returned b'abc' (bytes) for its result"),
    (lambda v: (v, v), "f returned a tuple of 2 for its result"),
    (lambda v: {"a": v}, "f returned a dict of 1 for its result; it must return an array"),
    (lambda v: [1.0, 2.0], "f returned a list of 2 for its result"),
    (lambda v: [[1.0], [2.0, 3.0]], "f returned a list of 2 for its result; it must return an a"),
    (lambda v: ["a", "b", "c"], "f returned a list of 3 for its result"),
    (lambda v: (e for e in v), "(generator) for its result; it must return an array"),
    (lambda v: object(), "(object) for its result; it must return an array"),
    (lambda v: np.sin, "<ufunc 'sin'> (ufunc) for its result; it must return an array"),
    (lambda v: types.SimpleNamespace(shape=(3,), dtype="float64"), "f returned float64[3] for its"),
    (lambda v: np.datetime64("2026-11-23"), "f returned "),
    (lambda v: [1j, 2, 3], "f returned a list of 3 for its result"),
    (lambda v: Unprintable(), "f returned "),
]


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr")


@pytest.mark.parametrize("function, text", WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("route", ["eager", "jit of vmap", "scan"])
def test_wrong_results(function, text, route):
    shown = message(ROUTES[route](elementwise(lambda v: function(v), name="f")), x)
    assert text in shown
    assert "float64[3]" in shown and "  called with v: float64[3]" in shown
    assert "_pycall" not in shown and len(shown) < 600


SEVERAL = [
    (lambda v: v, "f returned float64[3], but its declared result is (array, array)"),
    (lambda v: (v,), "f returned a tuple of 1, but its declared result is (array, array)"),
    (lambda v: (v, v, v), "f returned a tuple of 3, but its declared result is (array, array)"),
    (lambda v: None, "f returned None, but its declared result is (array, array)"),
    (lambda v: {"a": v, "b": v}, "f returned a dict of 2, but its declared result is (array, arr"),
    (lambda v: (v, None), "f returned None for result 1 of (array, array)"),
    (lambda v: (v, v), "f returned float64[3] for result 1; its declared shape and dtype are fl"),
    (lambda v: ((v, v), v), "f returned a tuple of 2 for result 0"),
    (lambda v: (v.sum(), v), "f returned float64[] for result 0; its declared shape and dtype"),
    (lambda v: "ab", "f returned 'ab' (str), but its declared result is (array, array)"),
]


@pytest.mark.parametrize("function, text", SEVERAL, ids=range(len(SEVERAL)))
def test_wrong_structures(function, text):
    f = jaxbind.bind(lambda v: function(v), "(n)->(n),()", name="f")
    for call in (f, ROUTES["jit of vmap"](f)):
        assert text in message(call, x)


def test_wrong_trees():
    f = jaxbind.bind(lambda v: {"a": v, "c": v}, out=lambda v: {"a": v, "b": v}, name="f")
    assert "f returned a dict of 2, but its declared result is {'a': array, 'b': array}" in message(
        f, x
    )


def test_results_returned_beside_out():
    f = elementwise(lambda v, out: out.fill(1) or v * 2, name="f")
    text = message(f, x)
    assert "f returned float64[3] although it has a parameter `out`; write the result into" in text
    assert np.all(np.asarray(elementwise(lambda v, out: np.add(v, 1, out=out))(x)) == x + 1)
    g = jaxbind.bind(lambda v, out: (v, v), "(n)->(n),(n)", name="g")
    assert "g returned a tuple of 2 although it has a parameter `out`" in message(g, x)


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


# Where it runs ------------------------------------------------------------------------------------


def test_an_old_jax_is_refused():
    from jaxbind._jax import require_supported_version

    with says(ImportError, "jaxbind needs jax >= 0.9.1 (XLA FFI 0.3); found jax 0.9.0"):
        require_supported_version("0.9.0")
    require_supported_version("0.9.1")
    require_supported_version("0.12.0.1")
    require_supported_version("1.0")


def test_other_platforms():
    bound = jaxbind.bind(lambda v: v, "()->()", name="f")
    for platform in ("rocm", "tpu"):
        with says(NotImplementedError, f"f: there is no implementation for platform {platform}"):
            jax.jit(bound).trace(1.0).lower(lowering_platforms=(platform,))
    calling = jaxbind.bind(lambda v: v, "()->()", name="f", allow_jax=True)
    with says(NotImplementedError, "platform cuda; with allow_jax=True jaxbind calls functions on"):
        jax.jit(calling).trace(1.0).lower(lowering_platforms=("cuda",))


class Sparse:
    """Has a shape and a dtype, and is no array."""

    shape, dtype = (3, 3), np.dtype(float)


@pytest.mark.parametrize(
    ("operand", "error", "said"),
    [
        (Sparse(), TypeError, r"argument 0 \(a\) is a Sparse; operands are arrays"),
        (jnp, TypeError, r"argument 0 \(a\) is a module"),
        (jax.ShapeDtypeStruct((3,), float), TypeError, "is a ShapeDtypeStruct; operands are"),
        (10**30, OverflowError, r"argument 0 \(a\) is 10+, which is no (32|64)-bit integer"),
    ],
    ids=["sparse", "module", "struct", "integer"],
)
def test_what_is_no_operand(operand, error, said):
    f = jaxbind.bind(lambda a: a, "()->()", name="f")
    with pytest.raises(error, match=said):
        f(operand)


@pytest.mark.parametrize("option", ["vectorized", "allow_jax"])
def test_flags_are_booleans(option):
    with pytest.raises(TypeError, match=f"{option}='no' is not understood; it is a bool"):
        jaxbind.bind(lambda a: a, "()->()", **{option: "no"})


def test_rules_of_too_few_parameters():
    f = jaxbind.bind(lambda a: a, "()->()", name="f")
    for declare in (f.def_jvp, f.def_vjp):
        with pytest.raises(TypeError, match="the rule takes 1 positional argument; it is called"):
            declare(lambda primals: primals)
    f.def_vjp(lambda *given: given[1])
    assert jax.grad(f)(1.0) == 1.0


def test_a_transpose_in_what_is_no_argument():
    f = jaxbind.bind(lambda a, b: a * b, "(),()->()", multilinear=("a", "b"), name="f")
    with pytest.raises(TypeError, match="def_transpose names 'z', which is no argument"):
        f.def_transpose("z")
    with pytest.raises(TypeError, match="got 3, which is not callable"):
        f.def_transpose("a")(3)


def test_results_to_be_inferred_of_symbolic_shapes():
    f = jaxbind.bind(lambda x: x, out="infer", name="f")
    (n,) = jax.export.symbolic_shape("n")
    with pytest.raises(TypeError, match=r"whose sizes must be known: got float32\[n\]. Declare"):
        jax.export.export(jax.jit(f))(jax.ShapeDtypeStruct((n,), np.float32))


REDUCTIONS = {
    "reduction": lambda f, x: jax.lax.reduce(x, 0.0, f, (0,)),
    "windowed reduction": lambda f, x: jax.lax.reduce_window(x, 0.0, f, (2,), (1,), "VALID"),
    "scatter": lambda f, x: jax.lax.scatter_apply(
        x,
        jnp.array([[0]]),
        lambda a: f(a, a),
        jax.lax.ScatterDimensionNumbers((), (0,), (0,)),
        update_shape=(1,),
    ),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_no_call_from_inside_a_reduction(name, nested):
    """XLA aborts the process where it compiles one."""
    add = jaxbind.bind(np.add, name="add")
    f = jax.jit(lambda a, b: add(a, b)) if nested else lambda a, b: add(a, b)
    with pytest.raises(NotImplementedError, match=f"add cannot be called by .* of a {name}: XLA"):
        REDUCTIONS[name](f, jnp.arange(3.0))
