"""Uses that are legitimate but odd, each of which once went wrong."""

import ctypes
import dataclasses
import itertools
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg.cython_lapack

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")
x = np.arange(3.0)


# Static parameters --------------------------------------------------------------------------------


def test_static_parameters_with_an_identity_of_their_own():
    numbers = itertools.count(1)

    @dataclasses.dataclass(eq=False)
    class Solver:
        name: str

        def __post_init__(self):
            self.scale = float(next(numbers))

    class Version(tuple):
        __slots__ = ()

        def __eq__(self, other):
            return self is other

        def __hash__(self):
            return id(self)

    f = jaxbind.bind(lambda x, *, s: x * s.scale, "()->()")
    assert [f(1.0, s=Solver("lu")), f(1.0, s=Solver("lu"))] == [1, 2]
    g = jaxbind.bind(lambda x, *, v: x + (v is second), "()->()")
    first, second = Version((1,)), Version((1,))
    assert [g(1.0, v=first), g(1.0, v=second)] == [1, 2]


def test_static_parameters_that_hold_something_unhashable():
    @dataclasses.dataclass(eq=False)
    class Grid:
        points: object

    @dataclasses.dataclass(frozen=True)
    class Named:
        name: str
        cache: object = dataclasses.field(hash=False, default=None)

    f = jaxbind.bind(lambda x, *, p: x, "()->()")
    assert f(1.0, p=Grid(np.zeros(3))) == f(1.0, p=Named("a", [2])) == 1


def test_static_parameters_that_are_equal_but_differ():
    @dataclasses.dataclass(frozen=True)
    class Holder:
        value: object

    f = jaxbind.bind(lambda x, *, p: x * len(str(p)), "()->()")
    assert [f(1.0, p=Decimal("1.0")), f(1.0, p=Decimal("1.000"))] == [3, 5]
    g = jaxbind.bind(lambda x, *, p: x * len(repr(p.value)), "()->()")
    assert [g(1.0, p=Holder(True)), g(1.0, p=Holder(1)), g(1.0, p=Holder(1.0))] == [4, 1, 3]


def test_subnormal_static_parameters():
    f = jaxbind.bind(lambda x, *, p: np.asarray(p > 0), "()->()", dtype=bool)
    programs = [jax.jit(lambda x, p=p: f(x, p=p)) for p in np.logspace(-322, -309, 12).tolist()]
    assert all(program(1.0) for program in programs)


# Derivatives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("nondiff", [(), "x"])
def test_integer_results_need_no_rule(nondiff):
    where = jaxbind.bind(lambda x: x.argmax(), "(n)->()", dtype=np.int64, nondiff=nondiff)
    np.testing.assert_array_equal(jax.grad(lambda x: x[where(x)])(x), [0, 0, 1])
    isnan = jaxbind.bind(np.isnan)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.where(isnan(x), 0, x).sum())(x), 1)
    assert jax.jvp(where, (x,), (x,))[1].dtype == jax.dtypes.float0


@pytest.mark.parametrize("traced", [False, True])
def test_transposes_are_told_what_is_wanted(traced):
    A = np.random.default_rng(0).normal(size=(3, 3))
    asked = []
    f = jaxbind.bind(lambda x, y: A @ x - y, "(3),(3)->(3)", linear=("x", "y"))

    @f.def_transpose(traced=traced)
    def _(ct, *, wrt):
        asked.append(tuple(wrt))
        return A.T @ ct if "x" in wrt else None, -ct if 1 in wrt else None

    np.testing.assert_allclose(jax.grad(lambda x: f(x, jnp.ones(3)).sum())(x), A.sum(0))
    both = jax.grad(lambda x, y: f(x, y).sum(), (0, 1))(x, x)
    np.testing.assert_allclose(both[0], A.sum(0))
    np.testing.assert_allclose(both[1], -np.ones(3))
    assert asked == [(True, False), (True, True)]
    hessian = jax.hessian(lambda x: (f(x, jnp.ones(3)) ** 2).sum())(x)
    np.testing.assert_allclose(hessian, 2 * A.T @ A, atol=1e-12)


def test_rules_that_are_not_told_what_is_wanted():
    f = jaxbind.bind(lambda x: x**2, "()->()")
    for declare in (f.def_jvp, f.def_jacobian):
        with pytest.raises(TypeError, match="Rules of def_vjp and def_transpose are told wrt"):
            declare(lambda *args, wrt: args)
    with pytest.raises(TypeError, match="keyword-only parameter n, which is no static parameter"):
        f.def_vjp(lambda primals, ct, *, n: ct)


# what is declared, with a static parameter that may stand in front of the keywords
BY_NAME = {
    "def_jvp": lambda f, r: f.def_jvp(lambda p, t, w=100: w * t[0], traced=r),
    "def_vjp": lambda f, r: f.def_vjp(lambda p, ct, w: w * ct, traced=r),
    "def_partials": lambda f, r: f.def_partials(lambda x, w=100: w + 0 * x, traced=r),
    "def_jacobian": lambda f, r: f.def_jacobian(lambda x, w: w + 0 * x, traced=r),
    "of the tuple": lambda f, r: f.def_jacobian(lambda primals, w: w + 0 * primals[0], traced=r),
}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("what", BY_NAME)
def test_rules_take_static_parameters_by_name(what, traced):
    """As in Python ``**static`` reaches every parameter that can be given by keyword."""
    f = jaxbind.bind(lambda x, *, w=3: x * w, "()->()")
    BY_NAME[what](f, traced)
    slope = jax.grad if what == "def_vjp" else jax.jacfwd
    assert slope(lambda x: f(x, w=5))(1.0) == 5
    assert jax.vmap(slope(f))(x).tolist() == [3, 3, 3]


@pytest.mark.parametrize("traced", [False, True])
def test_transposes_take_static_parameters_and_wrt_by_name(traced):
    f = jaxbind.bind(
        lambda x, y, k, *, w: (x + y) * k * w, "(),(),()->()", linear=("x", "y"), nondiff="k"
    )

    @f.def_transpose(traced=traced)
    def _(k, ct, w, wrt):
        assert len(wrt) == 3 and "k" not in wrt
        return tuple(k * ct * w if name in wrt else None for name in "xy")

    assert jax.grad(f)(2.0, 3.0, 4.0, w=5) == 20
    assert jax.grad(f, (0, 1))(2.0, 3.0, 4.0, w=5) == (20, 20)
    one = jaxbind.bind(lambda x, *, w: x * w, "()->()", linear=True)
    one.def_transpose(lambda ct, w=100: ct * w, traced=traced)
    assert jax.grad(one)(2.0, w=4) == 4


def test_wrt_may_stand_in_front_of_the_keywords():
    asked = []
    f = jaxbind.bind(lambda x, y: x * y, "(),()->()")
    f.def_vjp(lambda p, ct, wrt: asked.append(tuple(wrt)) or (ct * p[1], ct * p[0]))
    assert jax.grad(f)(2.0, 3.0) == 3
    assert asked == [(True, False)]


def test_other_declarations_take_static_parameters_by_name():
    f = jaxbind.bind(
        lambda x, *, n: np.full(n, x), out=lambda x, n: jax.ShapeDtypeStruct((n,), x.dtype)
    )
    f.def_vmap(lambda size, batched, x, n: (jnp.tile(x[:, None], n), True))
    assert f(2.0, n=3).shape == (3,)
    assert jax.vmap(lambda v: f(v, n=2))(x).tolist() == [[0, 0], [1, 1], [2, 2]]
    g = jaxbind.bind(lambda x, *, n, plan: x + plan, "()->()", name="g")
    with pytest.raises(TypeError, match=r"g: missing .* argument plan=, which g.def_plan\(make\)"):
        g(1.0, n=2)
    g.def_plan(lambda x, n=100: n)
    assert g(1.0, n=2) == 3


def test_parameters_behind_those_that_a_rule_is_given():
    f = jaxbind.bind(lambda x, *, w=3: x * w, "()->()", name="f")
    text = "the rule has a parameter bogus behind the 2 that are given by position, which is no st"
    with pytest.raises(TypeError, match=f"f.def_vjp: {text}"):
        f.def_vjp(lambda primals, ct, bogus: ct)
    with pytest.raises(TypeError, match="parameter wrt .* Rules of def_vjp and def_transpose are"):
        f.def_jvp(lambda primals, tangents, wrt: tangents[0])
    f.def_vjp(lambda primals, ct, scale=2.0: scale * ct)  # one of its own
    assert jax.grad(f)(1.0) == 2


DECLARE = {
    "def_jvp": lambda f: f.def_jvp,
    "def_vjp": lambda f: f.def_vjp,
    "def_partials": lambda f: f.def_partials,
    "def_jacobian": lambda f: f.def_jacobian,
    "def_plan": lambda f: f.def_plan,
    "def_impl('cuda')": lambda f: f.def_impl("cuda"),
    "def_vmap": lambda f: f.def_vmap,
}


@pytest.mark.parametrize("what", DECLARE)
def test_rules_that_cannot_be_called(what):
    f = jaxbind.bind(lambda x, *, power=2, plan=None: x**power, "()->()", name="f")
    declare = DECLARE[what](f)
    with pytest.raises(TypeError) as caught:
        declare(3)
    assert f"f.{what}: got 3, which is not callable" in str(caught.value)
    with pytest.raises(TypeError) as caught:
        declare(lambda *args, power, bogus: args)
    assert f"f.{what}: the rule has a keyword-only parameter bogus" in str(caught.value)
    assert not f.definition.rules


@pytest.mark.parametrize("made", [None, lambda x: 1])
def test_a_plan_that_cannot_be_made(made):
    f = jaxbind.bind(lambda x, *, plan: x, "()->()", name="f")
    if made is None:
        with pytest.raises(TypeError, match="f.def_plan: got None, which is not callable"):
            f.def_plan(None)
        assert f.definition.make_plan is None
    else:
        f.def_plan(made)
        assert f(1.0) == 1


def test_transposes_are_named_by_the_method_that_declares_them():
    f = jaxbind.bind(lambda a, b: a * b, "(),()->()", multilinear=("a", "b"), name="f")
    with pytest.raises(TypeError, match=r"^f\.def_transpose: the rule has a keyword-only par"):
        f.def_transpose("a")(lambda b, ct, *, bogus: ct)
    with pytest.raises(TypeError, match=r"^f\.def_transpose: got \[\], which is not callable"):
        f.def_transpose("a")([])


def test_a_rule_has_a_plan_of_its_own_only():
    f = jaxbind.bind(lambda x, *, plan: plan * x, "()->()", name="f")
    f.def_plan(lambda x: 2)
    f.def_jvp(lambda primals, tangents, *, plan: plan * tangents[0])
    text = r"f\.jvp: its rule has a keyword-only parameter plan.*f\.jvp\.def_plan\(make\)"
    with pytest.raises(TypeError, match=text):
        jax.make_jaxpr(jax.jacfwd(f))(1.0)
    f.jvp.def_plan(lambda primals, tangents: 2)
    assert jax.jvp(f, (1.0,), (1.0,)) == (2.0, 2.0)
    for declare in (lambda r: f.def_vjp(r, traced=True), f.def_partials, f.def_vmap):
        with pytest.raises(TypeError, match="Only functions and rules over NumPy arrays can have"):
            declare(lambda *args, plan: args)


def test_a_pushforward_used_before_it_is_declared_has_all_options():
    """Reverse mode needs it, undeclared; what is declared afterwards is the same object."""
    f = jaxbind.bind(lambda x: np.sin(x), "()->()", allow_jax=True, threads=4)
    f.def_vjp(lambda primals, ct: np.cos(primals[0]) * ct)
    assert jax.grad(f)(0.0) == 1
    f.def_jvp(lambda primals, tangents: np.asarray(jnp.cos(primals[0])) * tangents[0])
    assert jax.jvp(f, (0.0,), (2.0,))[1] == 2
    assert f.jvp.definition.options.threads == 4


def test_no_tangent_of_a_partly_linear_function():
    f = jaxbind.bind(lambda x, k: x * k, "(n),()->(n)", linear="x")
    np.testing.assert_array_equal(f.jvp((x, 2.0), (x, None)), 2 * x)
    np.testing.assert_array_equal(f.jvp((x, 2.0), (None, None)), 0 * x)


def test_a_missing_rule_of_a_transpose_is_named_as_the_user_reaches_it():
    m = jaxbind.bind(lambda a, b: a * b, "(),()->()", multilinear=("a", "b"), name="m")
    m.def_transpose("a")(lambda b, ct: ct * b)
    m.def_transpose("b")(lambda a, ct: ct * a)
    with pytest.raises(TypeError, match=r"m\.transpose\['a'\]: argument 0 \(b\)"):
        m.transpose["a"](np.array("text"), 1.0)


# Operands and results -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.longdouble, object, ">f8", "U3", "M8[s]", ">i4"])
def test_dtypes_of_numpys_own_are_refused_by_name(dtype):
    f = jaxbind.bind(lambda v: v, "(n)->(n)", name="f")
    for call in (f, lambda v: jax.vmap(f)(v[None]), f):
        f(x)  # compiled for float64: of which swapped bytes are not
        with pytest.raises(TypeError, match=r"f: argument 0 \(v\) has dtype .* Accepted: bool"):
            if call is f:
                call(np.zeros(3).astype(dtype))
            else:
                f(np.zeros((2, 3)).astype(dtype))
    with pytest.raises(TypeError, match=r"its bytes are swapped .*newbyteorder"):
        f(x.astype(">f8"))


def test_out_in_front_of_any_number_of_operands():
    def add(out, *xs):
        out[...] = sum(xs)

    np.testing.assert_array_equal(jaxbind.bind(add, "(n),(n)->(n)")(x, x), 2 * x)


def test_python_integers_for_unsigned_results():
    f = jaxbind.bind(lambda x: 3, "()->()", dtype=np.uint8)
    assert f(1.0) == 3
    g = jaxbind.bind(lambda x: [1, 2], "()->(2)", dtype=np.uint16)
    np.testing.assert_array_equal(g(1.0), [1, 2])
    with pytest.raises(Exception, match="out of bounds for uint8"):
        jaxbind.bind(lambda x: -3, "()->()", dtype=np.uint8)(1.0)


# Kernels ------------------------------------------------------------------------------------------

libm = ctypes.CDLL(None)


def test_kernels_whose_declaration_cannot_be():
    with pytest.raises(ValueError, match=r"a is overwritten .* float64\[n\] .* float64\[\]"):
        jaxbind.Kernel(libm.cos, "(n)->()", args="a, n", inout="a")
    libm.sin.restype, libm.sin.argtypes = ctypes.c_double, [ctypes.c_double]
    with pytest.raises(TypeError, match="which is no inner loop"):
        jaxbind.Kernel(libm.sin, "()->()", convention="gufunc")
    with pytest.raises(TypeError, match=r"status='s' is float64 \*; it must be an integer"):
        jaxbind.Kernel(libm.cos, "()->()", args="double *x, double *y, double *s", status="s")
    with pytest.raises(ValueError, match=r"Handler\(0\): the pointer is null"):
        jaxbind.Handler(0)
    with pytest.raises(TypeError, match="is no pointer to a handler"):
        jaxbind.Handler(test_kernels_whose_declaration_cannot_be)


def test_python_numbers_for_kernels_of_less_precision():
    libm.cosf.restype, libm.cosf.argtypes = ctypes.c_float, [ctypes.c_float]
    f = jaxbind.bind(jaxbind.Kernel(libm.cosf))
    assert f(1.5) == np.cos(np.float32(1.5))
    assert f(1.5).dtype == np.float32


def test_what_a_loop_raises_names_the_operands():
    power = jaxbind.bind(np.power)
    with pytest.raises(Exception, match=r"called with x1: int64\[\], x2: int64\[\]"):
        power(jnp.array([2]), jnp.array([-1])).block_until_ready()


def test_scipys_own_lapack():
    """Rows swapped by LAPACK's dlaswp, whose capsule names SciPy's own type for double."""
    capsule = scipy.linalg.cython_lapack.__pyx_capi__["dlaswp"]
    swap = jaxbind.Kernel(
        capsule,
        "(n,n),(n)->(n,n)",
        convention="Fortran",
        args="int columns, a, int lda, int first, int last, int *pivots, int step",
        static=("columns", "lda", "first", "last", "step"),
        inout="a",
    )
    a = np.arange(9.0).reshape(3, 3)
    pivots = np.array([3, 2, 3], np.int32)
    got = jaxbind.bind(swap)(a, pivots, columns=3, lda=3, first=1, last=3, step=1)
    np.testing.assert_array_equal(got, a[[2, 1, 0]])
