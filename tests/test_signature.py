"""Gufunc signatures: the parser and the shapes that follow, against NumPy's own gufuncs."""

import ctypes
import re

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import numpy._core._umath_tests as umath_tests
import pytest
from hypothesis import assume, example, given, settings

import jaxbind
from jaxbind._signature import parse

pytestmark = pytest.mark.usefixtures("x64")


# NumPy's gufuncs of any signature ----------------------------------------------------------------
#
# `PyUFunc_FromFuncAndDataAndSignature` makes a real gufunc, whose inner loop does nothing: NumPy's
# own C code then says which shapes fit a signature, and which shape the results have.

_LOOP = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)
_do_nothing = _LOOP(lambda *arguments: None)
_NPY_DOUBLE = 12
_made = {}  # NumPy keeps pointers into what it is given


def _make_gufunc(*arguments):
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = np._core._multiarray_umath._UFUNC_API
    table = ctypes.cast(pointer(capsule, None), ctypes.POINTER(ctypes.c_void_p))
    prototype = ctypes.PYFUNCTYPE(
        ctypes.py_object,
        *[ctypes.c_void_p] * 3,
        *[ctypes.c_int] * 4,
        *[ctypes.c_char_p] * 2,
        ctypes.c_int,
        ctypes.c_char_p,
    )
    return prototype(table[31])(*arguments)


def gufunc(signature):
    if signature not in _made:
        nin, nout = (side.count("(") for side in signature.split("->"))
        loops = (ctypes.c_void_p * 1)(ctypes.cast(_do_nothing, ctypes.c_void_p))
        data = (ctypes.c_void_p * 1)(None)
        types = (ctypes.c_char * (nin + nout))(*[_NPY_DOUBLE] * (nin + nout))
        pointers = [ctypes.addressof(memory) for memory in (loops, data, types)]
        text = signature.encode()
        made = _make_gufunc(*pointers, 1, nin, nout, -1, b"g", b"", 0, text)
        _made[signature] = made, loops, data, types, text
    return _made[signature][0]


def shapes_of(results):
    return [np.shape(r) for r in (results if isinstance(results, tuple) else (results,))]


def bound_shapes(signature, shapes):
    bound = jaxbind.bind(lambda *operands: None, signature)
    structs = [jax.ShapeDtypeStruct(shape, float) for shape in shapes]
    results = jax.eval_shape(bound, *structs)
    return [r.shape for r in (results if isinstance(results, tuple) else (results,))]


@st.composite
def signatures(draw):
    """Any signature that NumPy knows and whose output sizes follow from its inputs."""
    dimension = st.sampled_from(["k", "m", "n_1", "p?", "q?", "r?", "p?", "q?", "2", "3"])
    inputs = draw(st.lists(st.lists(dimension, max_size=3), min_size=1, max_size=3))
    known = sorted({d for core in inputs for d in core} | {"3"})
    outputs = draw(st.lists(st.lists(st.sampled_from(known), max_size=3), min_size=1, max_size=2))

    def show(cores):
        return ",".join(f"({','.join(core)})" for core in cores)

    return f"{show(inputs)}->{show(outputs)}"


# Parsing ------------------------------------------------------------------------------------------


@given(signatures())
def test_parsing_is_that_of_numpy(text):
    found = parse(text)
    counts = len(found.inputs), len(found.outputs)
    enabled, ranks, indices, flags, sizes = umath_tests.test_signature(*counts, text)
    cores = found.inputs + found.outputs
    assert tuple(len(core) for core in cores) == ranks
    names = {}
    for dim, index in zip((d for core in cores for d in core), indices, strict=True):
        assert names.setdefault(dim.name, index) == index
        assert (dim.size or -1) == sizes[index]
        assert dim.optional == bool(flags[index] & 4)
    assert len(set(names.values())) == len(names)
    assert found.elementwise == (not enabled)
    assert str(found) == text and parse(str(found)) == found


@given(signatures(), st.data())
def test_spaces_do_not_matter(text, data):
    parts = re.findall(r"->|\w+\??|[(),]", text)
    spaces = st.sampled_from(["", " ", "  ", "\t", "\n"])
    spaced = "".join(data.draw(spaces) + part + data.draw(spaces) for part in parts)
    assert parse(spaced) == parse(text)


@settings(max_examples=200)
@given(st.text("(),->mn3?", max_size=14) | signatures().flatmap(lambda s: st.permutations(list(s))))
def test_what_numpy_refuses_is_refused(text):
    text = "".join(text)
    assume(text.count("->") == 1)
    counts = [side.count("(") for side in text.split("->")]
    try:
        umath_tests.test_signature(*counts, text)
    except ValueError:
        with pytest.raises(ValueError):
            parse(text)
    else:
        try:
            parse(text)
        except ValueError as refused:  # what NumPy can parse, but only C code could answer
            assert re.search("stands only in an output|has no output", str(refused))


@given(st.text("(),->mn_3?|1. ö", max_size=20))
@example("(n)->(n)->(n)")
@example("(" * 1000)
def test_any_text_is_parsed_or_refused(text):
    try:
        found = parse(text)
    except ValueError as refused:
        assert repr(text) in str(refused)
    else:
        assert parse(str(found)) == found


REFUSED = [
    ("", "signature '' must contain '->' once, as in '(n),(n)->()'"),
    ("(n)", "signature '(n)' must contain '->' once"),
    ("(n)->()->()", "must contain '->' once"),
    ("(n)->", "signature '(n)->' has no output; write '->()' for a scalar"),
    ("->", "has no output"),
    ("n->n", "cannot read 'n'; write one pair of parentheses per argument, separated by commas"),
    ("(n)(n)->()", "cannot read '(n)(n)'"),
    ("(n),->()", "cannot read '(n),'"),
    ("((n))->()", "cannot read '((n))'"),
    ("(n,)->()", "'' is no core dimension; write a name (n), a fixed size (3), or a name with"),
    ("(1n)->()", "'1n' is no core dimension"),
    ("(-1)->()", "'-1' is no core dimension"),
    ("(n+1)->()", "'n+1' is no core dimension"),
    ("(...,n)->()", "'...' is no core dimension"),
    ("(n|2)->()", "'n|2' is no core dimension"),
    ("(n|1?)->()", "'n|1?' is no core dimension"),
    ("(n?|1)->()", "'n?|1' combines '|1' with a fixed size or with '?'"),
    ("(3|1)->()", "'3|1' combines '|1' with a fixed size or with '?'"),
    ("(n)->(m)", "core dimension m stands only in an output, so its size is unknown; declare such"),
    ("(n)->(n|1)", "n|1 broadcasts, which is possible in inputs only"),
    ("(n?),(n)->()", "core dimension n must carry '?' wherever it stands or nowhere"),
    ("(n?)->(n)", "core dimension n must carry '?' wherever it stands or nowhere"),
]


@pytest.mark.parametrize("text, says", REFUSED)
def test_refused(text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse(text)

    def named(*operands):
        return operands[0]

    for declare in (lambda: jaxbind.bind(named, text), lambda: jaxbind.bind(text)(named)):
        if text:
            with pytest.raises(ValueError, match="named: .*" + re.escape(says)):
                declare()


@pytest.mark.parametrize("value", [3, b"(n)->(n)", ["(n)->()"], ("(n)", "(n)"), {"n": 1}])
def test_a_signature_is_a_string(value):
    kind = type(value).__name__
    with pytest.raises(TypeError, match=re.escape(f"signature={value!r} is a {kind}; it must be")):
        jaxbind.bind(np.sum, value)


def test_two_dimensions_without_a_comma_are_refused():
    with pytest.raises(ValueError):
        parse("(n m)->()")


# Shapes -------------------------------------------------------------------------------------------


@st.composite
def shapes_for(draw, signature):
    """Operand shapes that fit a signature, mostly; some optional dimensions are missing."""
    sizes = draw(st.fixed_dictionaries({n: st.integers(0, 3) for n in ("k", "m", "n_1", *"pqr")}))
    missing = draw(st.sets(st.sampled_from("pqr")))
    loop = draw(st.lists(st.integers(0, 3), max_size=2))
    shapes = []
    for core in parse(signature).inputs:
        kept = [d for d in core if not (d.optional and d.name.rstrip("?") in missing)]
        own = [n if draw(st.booleans()) else 1 for n in loop[draw(st.integers(0, len(loop))) :]]
        shape = own + [d.size or sizes[d.name.rstrip("?")] for d in kept]
        shapes.append(tuple(shape))
    if draw(st.integers(0, 3)) == 0:
        spoilt = draw(st.integers(0, len(shapes) - 1))
        shapes[spoilt] = tuple(draw(st.lists(st.integers(0, 4), max_size=5)))
    return shapes


@settings(max_examples=200)
@given(signatures(), st.data())
def test_shapes_are_those_of_a_gufunc(signature, data):
    for core in parse(signature).inputs:  # NumPy counts one that is missing twice
        optional = [d.name for d in core if d.optional]
        assume(len(optional) == len(set(optional)))
    shapes = data.draw(shapes_for(signature))
    try:
        want = shapes_of(gufunc(signature)(*(np.ones(shape) for shape in shapes)))
    except ValueError:
        with pytest.raises(ValueError):
            bound_shapes(signature, shapes)
    else:
        assert bound_shapes(signature, shapes) == want


@pytest.mark.parametrize(
    "signature, shapes, want",
    [
        ("(m?,n?)->()", [(3,)], ()),  # m is missing, n is there
        ("(m?,n?)->(m?,n?)", [(3,)], (3,)),
        ("(m?,n?),(n?)->(m?)", [(3,), (3,)], ()),
        ("(m?,n?),(n?)->(m?)", [(2, 3), ()], (2, 3)),  # n is missing everywhere
        ("(n?,k),(k,m?)->(n?,m?)", [(2, 3), (3,)], (2,)),
    ],
)
def test_optional_dimensions(signature, shapes, want):
    assert shapes_of(gufunc(signature)(*(np.ones(shape) for shape in shapes))) == [want]
    assert bound_shapes(signature, shapes) == [want]


def test_the_function_sees_the_optional_dimensions_that_are_there():
    seen = []

    @jaxbind.bind("(m?,n?)->()")
    def total(a):
        seen.append(a.shape)
        return a.sum()

    for shape in [(), (3,), (2, 3), (4, 2, 3)]:
        operand = np.random.default_rng(0).standard_normal(shape)
        want = operand.sum(axis=tuple(range(-min(len(shape), 2), 0)))
        np.testing.assert_allclose(total(operand), want, rtol=1e-14)
    assert seen == [(), (3,), (2, 3)] + [(2, 3)] * 4
    seen.clear()
    np.testing.assert_allclose(jax.vmap(total)(np.ones((4, 3))), [3] * 4)
    np.testing.assert_allclose(jax.vmap(jax.vmap(total))(np.ones((4, 3))), np.ones((4, 3)))
    assert seen == [(3,)] * 4 + [()] * 12


REAL = [np.matmul, np.vecdot, np.matvec, np.vecmat, umath_tests.inner1d, umath_tests.cross1d,
        umath_tests.matrix_multiply, np.linalg._umath_linalg.solve]  # fmt: skip


@pytest.mark.parametrize("ufunc", REAL, ids=lambda u: u.__name__)
@settings(max_examples=12)
@given(data=st.data())
def test_real_gufuncs(ufunc, data):
    """A ufunc bound as it is, and as a Python function with the same signature."""
    draw = hnp.mutually_broadcastable_shapes(signature=ufunc.signature, max_dims=2, max_side=3)
    shapes = data.draw(draw).input_shapes
    rng = np.random.default_rng(0)
    operands = [rng.standard_normal(shape) for shape in shapes]
    want = ufunc(*operands)
    functions = [
        jaxbind.bind(ufunc),
        jaxbind.bind(lambda *v: ufunc(*v), ufunc.signature),
        jaxbind.bind(lambda *v, out: ufunc(*v, out=out) and None, ufunc.signature)
        if want.ndim == 0
        else jaxbind.bind(lambda *v: ufunc(*v), ufunc.signature, vectorized=True),
    ]
    for bound in functions:
        got = bound(*operands)
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_gufuncs_with_sizes_that_only_c_code_knows():
    convolve = jaxbind.bind(umath_tests.conv1d_full)
    declared = jaxbind.bind(
        umath_tests.conv1d_full,
        out=lambda a, b: jax.ShapeDtypeStruct((a.size + b.size - 1,), a.dtype),
    )
    a, b = np.arange(4.0), np.arange(3.0)
    for f in (convolve, declared):
        np.testing.assert_array_equal(f(a, b), np.convolve(a, b))
        np.testing.assert_array_equal(jax.vmap(f)(a[None], b[None])[0], np.convolve(a, b))
    with pytest.raises(ValueError, match="conv1d_full: .*core dimension 0"):
        convolve(a[:0], b[:0])


# Broadcasting core dimensions (NEP 20's ``|1``, which NumPy's own gufuncs do not have) -----------


@given(
    hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3),
    st.sampled_from(["(k|1),(k|1)->(k)", "(k|1),(k|1)->()", "(j,k|1),(j,k|1)->(j,k)"]),
)
def test_broadcasting_core_dimensions(drawn, signature):
    shapes = drawn.input_shapes
    seen = []

    def function(a, b):
        seen.append((a.shape, b.shape))
        return a + b if "->()" not in signature else np.sum(a + b)

    bound = jaxbind.bind(function, signature)
    core = 2 if "j" in signature else 1
    a, b = (np.random.default_rng(len(s)).integers(0, 9, s) * 1.0 for s in shapes)
    fits = min(a.ndim, b.ndim) >= core and (core == 1 or a.shape[-2] == b.shape[-2])
    if not fits:
        with pytest.raises(ValueError):
            bound(a, b)
        return
    want = a + b if "->()" not in signature else (a + b).sum(-1)
    np.testing.assert_array_equal(bound(a, b), want)
    for shown in seen:  # core dimensions arrive as they are: 1 stays 1
        assert shown == (a.shape[-core:], b.shape[-core:])


@pytest.mark.parametrize("first, second", [(3, 1), (1, 3), (1, 1), (3, 3), (0, 1), (0, 0)])
def test_one_dimension_that_broadcasts_against_one_that_does_not(first, second):
    bound = jaxbind.bind(lambda a, b: np.broadcast_to(a + b, a.shape), "(n),(n|1)->(n)")
    a, b = np.arange(first) * 1.0, np.arange(second) * 1.0
    if second not in (1, first):
        with pytest.raises(ValueError, match="size 3 of core dimension n in argument 1"):
            bound(a, b)
    else:
        np.testing.assert_array_equal(bound(a, b), np.broadcast_to(a + b, a.shape))


def test_core_sizes_that_contradict():
    bound = jaxbind.bind(lambda x, y, z: x, "(n),(n|1),(n)->(n)")
    with pytest.raises(ValueError, match=re.escape("size 4 of core dimension n in argument 2 (z)")):
        bound(np.ones(3), np.ones(1), np.ones(4))
    with pytest.raises(ValueError, match=re.escape("size 2 of core dimension n in argument 1 (y)")):
        bound(np.ones(3), np.ones(2), np.ones(3))
    with pytest.raises(ValueError):  # sizes 2 and 3, the first known from a dimension that may be 1
        jaxbind.bind(lambda x, y: x, "(n|1),(n|1)->(n)")(np.ones(2), np.ones(3))
    fixed = jaxbind.bind(lambda x, y: x, "(3),(n)->(3)")
    with pytest.raises(ValueError, match="size 1 of a core dimension in argument 0 .* size 3 in"):
        fixed(np.ones(1), np.ones(3))
    repeated = jaxbind.bind(lambda a: a, "(n,n)->(n,n)")
    with pytest.raises(ValueError, match="size 3 of core dimension n in argument 0"):
        repeated(np.ones((2, 3)))
