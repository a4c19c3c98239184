"""`testing.inputs`: what is drawn fits the signature, and is varied enough to find faults."""

import functools
import re

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from failing import elementwise
from hypothesis import HealthCheck, find, given, settings
from hypothesis.errors import Unsatisfiable

import jaxbind
from jaxbind import testing
from jaxbind.testing._arrays import laid_out
from jaxbind.testing._inputs import Drawing
from jaxbind.testing._subject import Subject


def drawn(f, count=150, **keywords):
    """Some examples, the same in each run."""
    found = []

    @settings(
        max_examples=count,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(testing.inputs(f, **keywords))
    def collect(args):
        found.append(args)

    collect()
    return found


def dtypes(f, **keywords):
    """The combinations of dtypes that are drawn."""
    return {tuple(str(x.dtype) for x in args) for args in drawn(f, 40, **keywords)}


def shapes(examples):
    return {tuple(x.shape for x in args) for args in examples}


@functools.cache
def made(signature):
    """A binding that declares these shapes; its values do not matter."""
    _, results = signature.split("->")
    count = results.count("(")

    def function(*args, out):
        for result in out if count > 1 else [out]:
            result[...] = sum(np.sum(x) for x in args)

    names = "abcd"[: signature.split("->")[0].count("(")]
    source = f"lambda {', '.join(names)}, out: function({', '.join(names)}, out=out)"
    return jaxbind.bind(eval(source, {"function": function}), signature, name="made")


# Shapes -------------------------------------------------------------------------------------------

SIGNATURES = {
    "()->()": lambda x: x == (),
    "(n)->()": lambda x: len(x) == 1,
    "(3)->(3)": lambda x: x == (3,),
    "(2,n)->(n)": lambda x: len(x) == 2 and x[0] == 2,
    "(n,n)->(n)": lambda x: len(x) == 2 and x[0] == x[1],
    "(n,m,3)->()": lambda x: len(x) == 3 and x[2] == 3,
    "(n),(n)->()": lambda x, y: len(x) == 1 and x == y,
    "(),(n)->(n)": lambda x, y: x == () and len(y) == 1,
    "(m,n),(n,p)->(m,p)": lambda x, y: len(x) == len(y) == 2 and x[1] == y[0],
    "(n),(m),(n,m)->(m)": lambda x, y, z: (*x, *y) == z,
    "(n),(m),(4),()->(n),(m)": lambda x, y, z, u: z == (4,) and u == () and len(x) == len(y) == 1,
}


@pytest.mark.parametrize("signature", SIGNATURES)
def test_shapes_fit_the_signature(signature):
    @given(testing.inputs(made(signature)))
    def test(args):
        assert isinstance(args, tuple)
        assert all(isinstance(x, np.ndarray) for x in args)
        assert SIGNATURES[signature](*(x.shape for x in args))

    test()


@pytest.mark.parametrize("signature", ["(m?,n),(n,p?)->(m?,p?)", "(n|1),(n|1)->(n)", "(n?)->(n?)"])
def test_optional_and_broadcast_dimensions(signature):
    """The binding takes what is drawn; NumPy's rules say which shape results."""
    f = made(signature)

    @given(testing.inputs(f))
    def test(args):
        got = np.asarray(f(*args))
        if "|1" in signature:
            assert got.shape == np.broadcast_shapes(*(x.shape for x in args))
        elif len(args) == 2:
            assert got.shape == np.matmul(*args).shape
        else:
            assert got.shape == args[0].shape

    test()


@pytest.mark.parametrize(
    "signature, ranks",
    [
        ("(m?,n),(n,p?)->(m?,p?)", {(2, 2), (1, 2), (2, 1), (1, 1)}),
        ("(n?)->(n?)", {(1,), (0,)}),
    ],
)
def test_optional_dimensions_are_sometimes_missing(signature, ranks):
    found = {tuple(x.ndim for x in args) for args in drawn(made(signature))}
    assert found == ranks


def test_a_dimension_of_size_one_is_sometimes_broadcast():
    found = shapes(drawn(made("(n|1),(n|1)->(n)")))
    assert any(x != y for x, y in found)


def test_sizes_0_to_3_occur():
    found = drawn(made("(m,n),(n)->(m)"))
    assert {n for (x, _) in found for n in x.shape} == {0, 1, 2, 3}
    assert any(x.shape == (1, 1) for x, _ in found)
    empty = sum(x.size == 0 for x, _ in found)
    assert 0 < empty < len(found) / 2  # they say little


def test_a_ufunc_has_a_signature():
    f = jaxbind.bind(np.hypot)
    assert shapes(drawn(f, 20)) == {((), ())}


# Layouts ------------------------------------------------------------------------------------------


def test_layouts_occur():
    arrays = [x for args in drawn(made("(m,n)->()"), 400) for x in args if min(x.shape) > 1]
    assert any(x.flags.c_contiguous for x in arrays)
    assert any(x.flags.f_contiguous and not x.flags.c_contiguous for x in arrays)
    assert any(min(x.strides) < 0 for x in arrays)
    strided = [x for x in arrays if min(x.strides) > 0]
    assert any(not (x.flags.c_contiguous or x.flags.f_contiguous) for x in strided)


def test_layouts_occur_in_one_dimension():
    arrays = [x for (x,) in drawn(made("(n)->()")) if x.size > 1]
    assert {np.sign(x.strides[0]) for x in arrays} == {1, -1}
    assert any(x.strides[0] > x.itemsize for x in arrays)


@pytest.mark.parametrize("how", ["C", "F", "reversed", "strided"])
@given(array=hnp.arrays(float, hnp.array_shapes(min_dims=1, min_side=0), elements=st.floats(-1, 1)))
def test_layouts_keep_the_values(how, array):
    got = laid_out(array, how)
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array, strict=True)


# Values -------------------------------------------------------------------------------------------


def values(f, **keywords):
    arrays = [x.reshape(-1) for args in drawn(f, **keywords) for x in args]
    return np.concatenate(arrays)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_values_are_of_moderate_size(dtype):
    found = values(made("(n)->()"), dtypes=dtype)
    assert np.all(np.isfinite(found))
    parts = np.concatenate([found.real, found.imag]) if found.dtype.kind == "c" else found
    assert np.all(np.abs(parts) <= 1.1e3)
    assert np.any(np.abs(parts) > 100) and np.any((np.abs(parts) < 1) & (parts != 0))
    assert np.any(parts < 0) and np.any(parts > 0)
    assert np.any(parts == 0)
    assert np.any(parts % 1 != 0)


def test_integers_are_small_and_have_signs():
    found = values(made("(n)->()"), dtypes=np.int32)
    assert found.dtype == np.int32
    assert np.min(found) < 0 < np.max(found) and np.max(np.abs(found)) < 10
    assert np.max(values(made("(n)->()"), dtypes=np.uint8)) < 10
    assert set(values(made("(n)->()"), dtypes=bool).tolist()) == {False, True}


def test_elements_differ():
    """Faults that exchange or mix elements do not show in constant arrays."""
    arrays = [x for (x,) in drawn(made("(n)->()")) if x.size == 3]
    assert sum(len(set(x.tolist())) == 3 for x in arrays) > len(arrays) / 2


def test_the_global_setting_does_not_narrow_them():
    with jax.enable_x64(False):
        assert dtypes(elementwise(lambda x: x**2 + abs(x))) == {("float64",)}


# Dtypes by default --------------------------------------------------------------------------------


def only(*kinds):
    """A function that refuses other dtypes."""

    def function(x):
        if x.dtype not in [np.dtype(kind) for kind in kinds]:
            raise TypeError(f"not {x.dtype}")
        return x.copy()

    return jaxbind.bind(function, "(n)->(n)", name="only")


@pytest.mark.parametrize("kind", ["float64", "float32", "complex128", "complex64", "int64", "bool"])
def test_what_the_function_takes(kind):
    assert dtypes(only(kind)) == {(kind,)}


def test_float64_comes_first():
    assert dtypes(only("float32", "float64", "int64")) == {("float64",)}


HOLOMORPHIC = {
    "square": (lambda x: x * x, True),
    "exponential": (np.exp, True),
    "reciprocal": (lambda x: 1 / (x + 0.5), True),
    "cumulative": (lambda x: np.cumsum(x), True),
    "conjugate": (np.conj, False),
    "abs": (np.abs, False),
    "real part times x": (lambda x: x.real * x, False),
    "sign of zero imaginary part": (lambda x: x + 1j * 0 * x if x.dtype == complex else x, True),
    "float only": (lambda x: x.astype(float), False),
    "discards silently": (lambda x: np.abs(x).astype(x.dtype), False),
    "atan2, which is real": (lambda x: np.arctan2(x, 1), False),
}


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_complex_where_the_function_is_holomorphic(name):
    function, holomorphic = HOLOMORPHIC[name]
    expected = {("float64",), ("complex128",)} if holomorphic else {("float64",)}
    assert dtypes(elementwise(lambda x: function(x))) == expected


def test_holomorphic_in_all_arguments():
    f = jaxbind.bind(lambda x, y: x * y, "(n),(n)->(n)")
    assert dtypes(f) == {("float64", "float64"), ("complex128", "complex128")}
    g = jaxbind.bind(lambda x, y: x * np.conj(y), "(n),(n)->(n)")
    assert dtypes(g) == {("float64", "float64")}


def test_a_rule_that_refuses_complex_numbers():
    """Of the function they would be possible."""
    f = elementwise(lambda x: np.sin(x))

    def jvp(primals, tangents):
        if primals[0].dtype.kind == "c":
            raise TypeError("real only")
        return np.cos(primals[0]) * tangents[0]

    f.def_jvp(jvp)
    assert dtypes(f) == {("float64",)}


def test_nondiff_indices_are_integers():
    gather = jaxbind.bind(lambda x, i: x[i % x.size], "(n),(k)->(k)", nondiff=["i"])
    assert {pair[1] for pair in dtypes(gather)} == {"int64"}
    assert {pair[0] for pair in dtypes(gather)} == {"float64", "complex128"}


def test_nondiff_parameters_that_are_real_numbers():
    f = jaxbind.bind(lambda x, s: np.sinc(x) * s, "(n),()->(n)", nondiff=["s"])
    assert {pair[1] for pair in dtypes(f)} == {"float64"}


def test_static_keywords_are_used_to_find_out():
    def function(x, *, kind):
        if x.dtype != kind:
            raise TypeError(f"not {kind}")
        return x.copy()

    f = elementwise(function)
    assert dtypes(f, static={"kind": "float32"}) == {("float32",)}
    assert dtypes(f, static=[{"kind": "complex128"}, {"kind": "int64"}]) == {("complex128",)}


def test_functions_that_raise_for_some_values_only():
    def function(x):
        if np.any(x < 0):
            raise ValueError("negative")
        return np.sqrt(x)

    assert ("float64",) in dtypes(elementwise(function))


# dtypes= ------------------------------------------------------------------------------------------

two = made("(n),()->(n)")


@pytest.mark.parametrize("one", [np.float32, "float32", np.dtype("float32")], ids=str)
def test_one_dtype(one):
    assert dtypes(two, dtypes=one) == {("float32", "float32")}


def test_several_dtypes_are_drawn_together():
    f = made("(n),()->(n)")
    assert dtypes(f, dtypes=["float32", np.float64]) == {
        ("float32", "float32"),
        ("float64", "float64"),
    }


def test_dtypes_by_name():
    assert dtypes(two, dtypes={"a": "float32", "b": np.int16}) == {("float32", "int16")}
    found = dtypes(two, dtypes={"a": ["float32", "float64"], "b": np.int16})
    assert found == {("float32", "int16"), ("float64", "int16")}


def test_dtypes_by_name_of_some():
    assert dtypes(
        jaxbind.bind(lambda a, b: np.abs(a) * b, "(n),()->(n)"), dtypes={"b": "int32"}
    ) == {("float64", "int32")}


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8", "uint64", "complex64"])
def test_other_dtypes(name):
    (pair,) = dtypes(made("(n)->(n)"), dtypes=jnp.dtype(name))
    assert pair == (name,)


# elements= ----------------------------------------------------------------------------------------


def test_elements_for_all_arguments():
    found = drawn(two, elements=st.floats(2, 3))
    assert all(np.all((x >= 2) & (x <= 3)) for args in found for x in args)
    assert {x.shape for x, _ in found} == {(0,), (1,), (2,), (3,)}


def test_elements_by_name():
    found = drawn(two, elements={"b": st.floats(2, 3)})
    assert all(2 <= b <= 3 for _, b in found)
    assert any(np.any(np.abs(a) > 3) for a, _ in found)


def test_elements_that_are_integers():
    assert dtypes(two, elements=st.integers(0, 5)) == {("int64", "int64")}
    assert {b for _, b in dtypes(two, elements={"b": st.integers(0, 5)})} == {"int64"}
    assert dtypes(two, elements=st.integers(0, 5), dtypes=float) == {("float64", "float64")}
    found = drawn(two, 40, elements={"b": st.sampled_from([2, 4])}, dtypes={"b": np.int32})
    assert {int(b) for _, b in found} == {2, 4}


def test_elements_that_are_complex():
    """The function takes real numbers as well, but these are asked for."""
    found = drawn(two, elements=st.complex_numbers(min_magnitude=1, max_magnitude=2))
    assert {a.dtype for a, _ in found} == {np.dtype(complex)}
    assert all(np.all((abs(a) > 0.99) & (abs(a) < 2.01)) for a, _ in found)


def test_elements_in_single_precision():
    found = drawn(two, elements=st.floats(1, 2), dtypes=np.float32)
    assert {x.dtype for args in found for x in args} == {np.dtype("float32")}


def test_elements_that_are_whole_arrays():
    """Other arguments take their sizes from them."""
    f = made("(n),(n,m)->(m)")
    arrays = hnp.arrays(float, st.integers(4, 6), elements=st.floats(0, 1))
    found = drawn(f, 40, elements={"a": arrays})
    assert {a.shape[0] for a, _ in found} == {4, 5, 6}
    assert all(b.shape[0] == a.shape[0] for a, b in found)


def test_elements_that_are_arrays_of_shape_and_dtype():
    seen = set()

    def increasing(shape, dtype):
        seen.add((shape, dtype))
        return hnp.arrays(dtype, shape, elements=st.floats(0, 1, width=32)).map(np.cumsum)

    found = drawn(two, elements={"a": increasing}, dtypes=np.float32)
    assert all(np.all(np.diff(a) >= 0) and a.dtype == np.float32 for a, _ in found)
    assert {shape for shape, _ in seen} == {(0,), (1,), (2,), (3,)}
    assert {dtype for _, dtype in seen} == {np.dtype(np.float32)}


def test_an_array_of_another_dtype_is_converted():
    found = drawn(
        two, 20, elements={"a": lambda shape, dtype: st.just(np.ones(shape, int))}, dtypes=float
    )
    assert all(a.dtype == float and np.all(a == 1) for a, _ in found)


def test_elements_limit_what_the_function_must_take():
    """It raises for everything else."""

    def function(x):
        if not np.all((x >= 5) & (x <= 6)):
            raise ValueError("outside")
        return x.copy()

    assert ("float64",) in dtypes(elementwise(function), elements=st.floats(5, 6))


# Shrinking ----------------------------------------------------------------------------------------


def test_examples_become_simple():
    """The shortest array with a large element, and no other digits."""
    (x,) = find(testing.inputs(made("(n)->()")), lambda args: np.any(np.abs(args[0]) > 1))
    assert x.shape == (1,)
    assert abs(x[0]) in (2, 3)


# Errors -------------------------------------------------------------------------------------------


def says(error, *texts):
    """The message holds all of these texts."""
    pattern = "".join(f"(?=.*{re.escape(text)})" for text in ("jaxbind.testing: ", *texts))
    return pytest.raises(error, match="(?s)" + pattern)


def test_no_signature():
    f = jaxbind.bind(lambda x: x, out=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), name="made")
    with says(ValueError, "made has no signature", "bound with out=", "Give inputs=", "st.tuples("):
        testing.inputs(f)


def test_no_binding():
    with says(TypeError, "got a function", "it tests bindings: jaxbind.bind(function, ...)"):
        testing.inputs(lambda x: x)
    with says(TypeError, "got a ufunc"):
        testing.inputs(np.sin)
    with says(TypeError, "got a str, 'fft'"):
        testing.inputs("fft")


@pytest.mark.parametrize("keyword", ["elements", "dtypes"])
def test_unknown_argument(keyword):
    given = {"c": st.floats()} if keyword == "elements" else {"c": float}
    with says(TypeError, keyword, "c", "made", "a", "b"):
        testing.inputs(two, **{keyword: given})


@pytest.mark.parametrize(
    "wrong", [3, "floats", [1.0, 2.0], np.ones(3)], ids=lambda x: type(x).__name__
)
def test_elements_of_the_wrong_type(wrong):
    kind = type(wrong).__name__
    with says(TypeError, f"elements for a is a {kind}; it must be a Hypothesis strategy"):
        testing.inputs(two, elements={"a": wrong})
    with says(TypeError, f"is a {kind}; it must be a Hypothesis strategy, or a function"):
        testing.inputs(two, elements=wrong)


def test_elements_whose_function_returns_something_else():
    with says(TypeError, "elements for a returned a ndarray", "strategy of arrays of shape"):
        drawn(two, elements={"a": lambda shape, dtype: np.ones(shape)}, dtypes=float)


def test_a_function_that_raises_everywhere():
    def function(x):
        raise RuntimeError("the table is missing")

    f = jaxbind.bind(function, "(n)->(n)", name="looked_up")
    with says(
        ValueError,
        "looked_up raises for every input that was drawn",
        "the table is missing",
        "Give elements=",
        "static=",
    ):
        testing.inputs(f)


def test_a_function_that_is_not_called_where_all_dtypes_are_given():
    """Nothing has to be found out."""
    called = []

    def function(x):
        called.append(x)
        raise RuntimeError

    assert dtypes(elementwise(function), dtypes=float) == {("float64",)}
    assert not called


def test_wrong_dtypes():
    with pytest.raises(TypeError, match="number"):
        testing.inputs(two, dtypes="number")


def test_elements_that_do_not_fit_the_signature():
    """No tuple of them can be drawn; Hypothesis says so."""
    f = made("(3)->()")
    with pytest.raises(Unsatisfiable):
        drawn(f, 20, elements={"a": hnp.arrays(float, 4)}, dtypes=float)


# Inside Hypothesis ----------------------------------------------------------------------------------


def test_given():
    """As an argument of @given, with the health checks of the profile."""

    @given(testing.inputs(two))
    def test(args):
        assert len(args) == 2

    test()


@pytest.mark.parametrize(
    "elements",
    [st.floats(0, 1), {"a": st.floats(0, 1)}, {"b": st.just(np.ones(()))}],
    ids=["for all", "by name", "whole arrays"],
)
def test_given_with_elements(elements):
    @given(testing.inputs(two, elements=elements))
    def test(args):
        assert len(args) == 2

    test()


@pytest.mark.slow
def test_drawn_interactively():
    @settings(max_examples=5)  # each asks anew which dtypes the binding takes
    @given(st.data())
    def test(data):
        assert len(data.draw(testing.inputs(two))) == 2

    test()


def test_elements_are_looked_at_once():
    """Whether a strategy draws numbers or arrays is not asked again for every part of a search."""
    drawn = []
    numbers = st.floats(1, 2).map(lambda x: drawn.append(x) or x)
    f = jaxbind.bind(lambda x: x**2, "()->()", name="square")
    drawing = Drawing.of(Subject.of(f), numbers, [float], [{}])
    count = len(drawn)
    for part in drawing.pooled(3, 0).strata(16, np.random.default_rng(0)):
        assert part.whole == ()
    assert len(drawn) == count


# Nothing is passed over in silence ----------------------------------------------------------------


def never(x):
    raise ValueError("no convergence")


@pytest.mark.parametrize(
    "keywords", [{"dtypes": float}, {"inputs": st.just((np.ones(2),))}], ids=["dtypes", "inputs"]
)
def test_a_function_that_raises_for_all_examples_does_not_pass(keywords):
    f = jaxbind.bind(never, "(n)->(n)")
    with pytest.raises(ValueError, match="nothing can be said about never.*no convergence"):
        testing.check(f, max_examples=5, **keywords)
    assert testing.report(f, max_examples=5, **keywords).ok


def test_no_static_keywords_at_all():
    f = elementwise(np.sin)
    for keywords in ({}, {"inputs": st.just((np.ones(2),))}):
        with pytest.raises(ValueError, match="static= is empty"):
            testing.check(f, static=[], **keywords)


def test_laws_from_an_iterator():
    f = jaxbind.bind(lambda x: np.where(np.arange(x.size) % 2, x, x[::-1]), "(n)->(n)")
    f.def_jvp(lambda primals, tangents: 2 * tangents[0])
    with pytest.raises(testing.LawViolation):
        testing.check(f, laws=(name for name in ["jvp"]), max_examples=20)
    testing.check(f, skip=(name for name in ["jvp", "adjoint", "higher"]), max_examples=5)
    powers = jaxbind.bind(lambda x, *, n: x**n, "()->()", name="powers")
    testing.check(powers, static=({"n": n} for n in (2, 3)), laws=["static"], max_examples=20)
    told = jaxbind.bind(lambda x: x**2, "()->()", name="told")
    told.def_jvp(lambda primals, tangents: tangents[0])
    testing.using(told, laws=(name for name in ["jvp"]))
    for _ in range(2):
        with pytest.raises(testing.LawViolation):
            testing.check(told, max_examples=20)
    mark = testing.parametrize(f, laws=iter(["jit", "jvp"]))
    assert [p.id.rpartition("-")[2] for p in mark.args[1]] == ["jit", "jvp"]


def test_elements_that_no_dtype_holds():
    f = jaxbind.bind(lambda x, y: x + y, "(),()->()")
    with pytest.raises(ValueError, match="elements= and dtypes= of .* contradict each other"):
        testing.check(f, elements={"x": st.floats(0.1, 0.9)}, dtypes={"x": int})


def test_a_function_without_operands():
    testing.check(jaxbind.bind(lambda: (np.ones(2), 3.0), "->(2),()"), max_examples=5)
