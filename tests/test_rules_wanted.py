"""Which rules are called, how often, with what; and that replaced rules are seen."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import close
from foreign import Pair

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

X = np.asarray([0.5, -1.0, 2.0])
Y = np.asarray([1.0, 3.0, -2.0])


class Counted:
    """``f(x, y) = x y²`` with rules that write down their calls."""

    def __init__(self, **options):
        self.calls = calls = []
        self.f = f = jaxbind.bind(
            lambda x, y: calls.append("f") or x * y**2, "(n),(n)->(n)", **options
        )

        @f.def_jvp
        def _(primals, tangents):
            calls.append(("jvp", tuple(t is not None for t in tangents)))
            (x, y), (dx, dy) = primals, tangents
            return y**2 * dx + 2 * x * y * dy

        @f.def_vjp
        def _(primals, cotangent, *, wrt):
            calls.append(("vjp", tuple(wrt)))
            x, y = primals
            return (
                y**2 * cotangent if wrt[0] else None,
                2 * x * y * cotangent if wrt[1] else None,
            )

    def taken(self):
        taken, self.calls[:] = list(self.calls), []
        return taken


@pytest.fixture
def counted():
    return Counted()


def total(f):
    return lambda *args: jnp.sum(f(*args))


# What is called -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("argnums", "wrt"), [((0,), (True, False)), ((1,), (False, True)), ((0, 1), (True, True))]
)
def test_wrt_says_what_is_wanted(counted, argnums, wrt, wrap):
    gradient = wrap(jax.grad(total(counted.f), argnums))
    want = jax.grad(lambda x, y: jnp.sum(x * y**2), argnums)(X, Y)
    close(gradient(X, Y), want)
    assert [c for c in counted.taken() if c != "f"] == [("vjp", wrt)]


@pytest.mark.parametrize("argnum", [0, 1])
def test_wrt_in_maps_scans_and_checkpoints(counted, argnum):
    wrt = [("vjp", (argnum == 0, argnum == 1))]
    args = np.stack([X, X]), np.stack([Y, Y])
    jax.jit(jax.vmap(jax.grad(total(counted.f), argnum)))(*args)
    assert [c for c in counted.taken() if c != "f"] == wrt * 2
    jax.jit(jax.grad(total(jax.checkpoint(counted.f)), argnum))(X, Y)
    assert [c for c in counted.taken() if c != "f"] == wrt

    def scanned(x, y):
        def body(carry, t):
            return carry, jnp.sum(counted.f(t * x, t * y))

        return jnp.sum(jax.lax.scan(body, 0.0, jnp.arange(3.0))[1])

    jax.jit(jax.grad(scanned, argnum))(X, Y)
    assert [c for c in counted.taken() if c != "f"] == wrt * 3


def test_wrt_asked_in_every_way():
    seen = []
    f = jaxbind.bind(lambda x, y, k: x * y * k, "(n),(n),()->(n)")

    @f.def_vjp
    def _(primals, ct, *, wrt):
        seen.append((list(wrt), "x" in wrt, "y" in wrt, "k" in wrt, 0 in wrt, 1 in wrt, 2 in wrt))
        x, y, k = primals
        return y * k * ct, x * k * ct, None

    jax.grad(total(f))(X, Y, 3)
    assert seen == [([True, False, False], True, False, False, True, False, False)]


def test_wrt_in_a_traced_rule():
    seen = []
    f = jaxbind.bind(lambda x, y: x * y, "(n),(n)->(n)")

    @f.def_vjp(traced=True)
    def _(primals, ct, *, wrt):
        seen.append(tuple(wrt))
        x, y = primals
        return y * ct if wrt[0] else None, x * ct if wrt[1] else None

    close(jax.grad(total(f), 1)(X, Y), X)
    close(jax.grad(total(f), (0, 1))(X, Y), (Y, X))
    assert seen == [(False, True), (True, True)]


def test_wrt_of_one_leaf_of_an_argument():
    seen = []
    f = jaxbind.bind(lambda p, c: p.u * p.v * c, out=lambda p, c: p.u)

    @f.def_vjp
    def _(primals, ct, *, wrt):
        seen.append(tuple(wrt))
        p, c = primals
        return Pair(p.v * c * ct, p.u * c * ct) if "p" in wrt else None, None

    close(jax.grad(lambda u: total(f)(Pair(u, Y), 2.0))(X), 2 * Y)
    assert seen == [(True, False)]


def test_wrt_in_a_derivative_of_a_derivative():
    """Its arguments are the primals and the cotangents, zeros of what was not wanted before."""
    seen = []
    f = jaxbind.bind(lambda x, y: x * y, "(n),(n)->(n)")
    f.def_vjp(lambda p, ct: (p[1] * ct, p[0] * ct))

    @f.vjp.def_vjp
    def _(primals, cotangents, *, wrt):
        (_, ct), (u, v) = primals, cotangents
        seen.append((list(wrt), "primals" in wrt, "cotangents" in wrt, v.tolist()))
        return (v * ct, u * ct), None

    close(jax.vjp(lambda y: jax.grad(total(f))(X, y), Y)[1](X), (jnp.asarray(X),))
    assert seen == [([True, False], True, False, [0.0] * len(X))]


def test_the_function_is_not_called_for_its_gradient_alone(counted):
    """The pullback needs operands, not the result; what nobody uses is not computed."""
    jax.jit(jax.grad(total(counted.f)))(X, Y)
    assert counted.taken() == [("vjp", (True, False))]
    value, pull = jax.jit(lambda x, y: jax.vjp(counted.f, x, y))(X, Y)
    assert counted.taken() == ["f"]
    pull(value)
    pull(value)
    assert counted.taken() == [("vjp", (True, True))] * 2


def test_no_rule_for_tangents_known_to_be_zero(counted):
    f = counted.f

    def constant(t):
        return f(X, Y) * t

    jax.jvp(constant, (1.0,), (1.0,))
    jax.grad(lambda t: jnp.sum(constant(t)))(1.0)
    jax.jvp(lambda x: f(jax.lax.stop_gradient(x), Y), (X,), (X,))
    jax.grad(lambda x: jnp.sum(f(jax.lax.stop_gradient(x), Y)) + jnp.sum(x))(X)
    jax.grad(lambda x: jnp.sum(f(jnp.round(x), Y) * 0 + x) + 0 * X[0])(X)
    taken = [c for c in counted.taken() if c != "f" and c[0] == "jvp"]
    assert taken == []


def test_no_pullback_for_cotangents_known_to_be_zero():
    calls = []
    f = jaxbind.bind(lambda x: (2 * x, 3 * x), "(n)->(n),(n)")
    f.def_vjp(lambda p, cts: calls.append([np.any(c) for c in cts]) or 2 * cts[0] + 3 * cts[1])

    def unused(x):
        f(x)
        return jnp.sum(x)

    close(jax.grad(unused)(X), jnp.ones(3))
    assert calls == []
    close(jax.grad(lambda x: jnp.sum(f(x)[1]))(X), 3 * jnp.ones(3))
    assert calls == [[False, True]]


def test_a_linear_function_is_its_own_pushforward():
    calls = []
    f = jaxbind.bind(lambda x: calls.append("f") or 2 * x, "(n)->(n)", linear=True)
    f.def_transpose(lambda ct: calls.append("T") or 2 * ct)
    jax.jit(lambda x: jax.jvp(f, (x,), (2 * x,)))(X)
    assert calls == ["f", "f"]
    calls.clear()
    jax.jit(jax.grad(total(f)))(X)
    assert calls == ["T"]


def test_each_multilinear_argument_calls_its_own_transpose():
    calls = []
    f = jaxbind.bind(lambda x, y: x * y, "(n),(n)->(n)", multilinear=("x", "y"))
    f.def_transpose("x")(lambda y, ct: calls.append("x") or y * ct)
    f.def_transpose("y")(lambda x, ct: calls.append("y") or x * ct)
    jax.jit(jax.grad(total(f), 1))(X, Y)
    assert calls == ["y"]
    jax.jit(jax.grad(total(f), (0, 1)))(X, Y)
    assert sorted(calls[1:]) == ["x", "y"]


def test_partials_of_other_arguments_are_not_evaluated():
    calls = []
    f = jaxbind.bind(lambda x, y: x * y, "(),()->()")
    f.def_partials(
        lambda x, y: calls.append("x") or y,
        lambda x, y: calls.append("y") or x,
    )
    jax.jvp(lambda x: f(x, Y), (X,), (X,))
    assert calls == ["x"]
    jax.grad(lambda y: total(f)(X, y))(Y)
    assert calls == ["x", "y"]


def test_numpy_partials_of_other_arguments_are_not_evaluated():
    calls = []
    f = jaxbind.bind(lambda x, y: x * y, "(),()->()", vectorized=True)
    f.def_partials(
        lambda x, y: calls.append("x") or y + 0 * x,
        lambda x, y: calls.append("y") or x + 0 * y,
        traced=False,
    )
    close(jax.jit(jax.grad(lambda y: total(f)(X, y)))(Y), X)
    assert calls == ["y"]


@pytest.mark.parametrize(
    ("how", "given", "calls"),
    [
        ("finite-difference", None, ["f"] * 2),
        ("complex-step", None, ["f"]),
        ("from-vjp", "def_vjp", ["rule"] * 3),
        ("from-jvp", "def_jvp", ["rule"] * 3),
    ],
)
def test_what_made_derivatives_cost(how, given, calls):
    """As their documentation says; a result of three elements, an argument of three."""
    seen = []
    f = jaxbind.bind(lambda x: seen.append("f") or x**2, "(n)->(n)")
    if given == "def_vjp":
        f.def_vjp(lambda p, ct: seen.append("rule") or 2 * p[0] * ct)
    if given == "def_jvp":
        f.def_jvp(lambda p, t: seen.append("rule") or 2 * p[0] * t[0])
    if how == "from-jvp":
        f.def_vjp(how)
        close(jax.jit(jax.grad(total(f)))(X), 2 * X)
    else:
        f.def_jvp(how)
        close(jax.jit(lambda x: jax.jvp(f, (x,), (x,))[1])(X), 2 * X**2, 1e-8)
    assert seen == calls


# What they get ------------------------------------------------------------------------------------


def test_rules_over_numpy_get_arrays_never_symbolic_zeros():
    seen = []
    f = jaxbind.bind(
        lambda x, k, c: (x * c, k + 1), "(n),(),(n)->(n),()", dtype=(float, int), nondiff="c"
    )

    @f.def_jvp
    def _(primals, tangents):
        seen.append(("jvp", [type(t) for t in tangents]))
        return tangents[0] * primals[2], None

    @f.def_vjp
    def _(primals, cotangents):
        seen.append(("vjp", [type(ct) for ct in cotangents]))
        return cotangents[0] * primals[2], None, None

    jax.jvp(lambda x: f(x, 2, Y), (X,), (X,))
    jax.grad(lambda x: jnp.sum(f(x, 2, Y)[0]))(X)
    none = type(None)
    assert seen == [("jvp", [np.ndarray, none, none]), ("vjp", [np.ndarray, none])]


def test_zero_tangents_of_general_arguments_are_arrays(counted):
    """With one rule for all arguments, those without a tangent get zeros."""
    jax.jvp(lambda x: counted.f(x, Y), (X,), (X,))
    assert [c for c in counted.taken() if c != "f"] == [("jvp", (True, True))]


def test_traced_rules_get_arrays_too():
    seen = []
    f = jaxbind.bind(lambda x, y: x * y, "(n),(n)->(n)")

    @f.def_jvp(traced=True)
    def _(primals, tangents):
        seen.append([isinstance(t, jax.Array) for t in tangents])
        return primals[0] * tangents[1] + tangents[0] * primals[1]

    close(jax.jvp(lambda x: f(x, Y), (X,), (X,))[1], X * Y)
    assert seen == [[True, True]]


def test_a_whole_argument_without_tangents_is_none():
    """Also where the argument is a pytree; and called directly as through JAX."""
    seen = []
    f = jaxbind.bind(lambda p, x: x * p["a"], out=lambda p, x: x, nondiff="p")

    @f.def_jvp
    def _(primals, tangents):
        seen.append(tangents[0])
        return primals[0]["a"] * tangents[1]

    p = {"a": Y, "k": np.arange(2)}
    jax.jvp(lambda x: f(p, x), (X,), (X,))
    f.jvp((p, X), (None, X))
    assert seen == [None, None]


def test_rules_see_static_parameters_they_name():
    f = jaxbind.bind(lambda x, *, power, label="": x**power, "(n)->(n)")
    seen = []

    @f.def_jvp
    def _(primals, tangents, *, power):
        seen.append(power)
        return power * primals[0] ** (power - 1) * tangents[0]

    @f.def_vjp
    def _(primals, ct, **static):
        seen.append(static)
        return static["power"] * primals[0] ** (static["power"] - 1) * ct

    jax.jvp(functools.partial(f, power=3, label="a"), (X,), (X,))
    jax.grad(lambda x: jnp.sum(f(x, power=2, label="b")))(X)
    assert seen == [3, {"power": 2, "label": "b"}]


# Rules that change --------------------------------------------------------------------------------


def scaled(f, factor):
    f.def_jvp(lambda p, t: factor * t[0])
    f.def_vjp(lambda p, ct: (factor * ct,))


WAYS = {
    "eager": lambda f: lambda x: jax.grad(total(f))(x),
    "eager-jvp": lambda f: lambda x: jax.jvp(f, (x,), (jnp.ones(3),))[1],
    "jit": lambda f: jax.jit(jax.grad(total(f))),
    "jit-jvp": lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (jnp.ones(3),))[1]),
    "inner-jit": lambda f: jax.grad(total(jax.jit(f))),
    "scan": lambda f: jax.jit(
        jax.grad(lambda x: jax.lax.scan(lambda c, _: (c, total(f)(x)), 0.0, None, 1)[1][0])
    ),
    "cond": lambda f: jax.jit(
        jax.grad(lambda x: jax.lax.cond(x[0] > -9, total(f), lambda x: 0.0, x))
    ),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(total(f))),
    "custom_jvp": lambda f: jax.grad(total(_through_custom_jvp(f))),
    "vmap": lambda f: lambda x: jax.vmap(jax.grad(total(f)))(x[None])[0],
}


def _through_custom_jvp(f):
    @jax.custom_jvp
    def g(x):
        return f(x)

    g.defjvp(lambda p, t: jax.jvp(f, p, t))
    return g


@pytest.mark.parametrize("way", WAYS)
def test_a_replaced_rule_is_seen(way):
    f = jaxbind.bind(lambda x: x, "(n)->(n)")
    scaled(f, 1)
    derivative = WAYS[way](f)
    close(derivative(X), jnp.ones(3))
    for factor in (2, 3):
        scaled(f, factor)
        close(derivative(X), factor * jnp.ones(3))


@pytest.mark.parametrize("way", WAYS)
def test_a_rule_given_after_the_function_was_used(way):
    f = jaxbind.bind(lambda x: x, "(n)->(n)")
    derivative = WAYS[way](f)
    f(X), jax.jit(f)(X)
    with pytest.raises(TypeError, match=r"no derivative with respect to argument 0 \(x\)"):
        derivative(X)
    scaled(f, 2)
    close(derivative(X), 2 * jnp.ones(3))


def test_derivatives_of_a_derivative_may_be_declared_before_it():
    f = jaxbind.bind(lambda x: x**2, "(n)->(n)")
    f.jvp.def_jvp(lambda p, t: 2 * t[0][0] * p[1][0])
    f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    close(jax.jacfwd(jax.jacfwd(total(f)))(X), 2 * jnp.eye(3))


def test_one_rule_after_the_other_was_used():
    f = jaxbind.bind(lambda x: x, "(n)->(n)")
    f.def_vjp(lambda p, ct: 2 * ct)
    close(jax.grad(total(f))(X), 2 * jnp.ones(3))
    f.def_jvp(lambda p, t: 2 * t[0])
    close(jax.jvp(f, (X,), (X,))[1], 2 * X)
    close(jax.grad(total(f))(X), 2 * jnp.ones(3))
    f.def_vjp("from-jvp")
    close(jax.grad(total(f))(X), 2 * jnp.ones(3))
    f.def_partials(lambda x: 2.0)
    close(jax.jvp(f, (X,), (X,))[1], 2 * X)


def test_a_replaced_transpose_is_seen():
    f = jaxbind.bind(lambda x: x, "(n)->(n)", linear=True)
    f.def_transpose(lambda ct: ct)
    gradient = jax.jit(jax.grad(total(f)))
    close(gradient(X), jnp.ones(3))
    f.def_transpose(lambda ct: 2 * ct)
    close(gradient(X), 2 * jnp.ones(3))
    f.def_transpose(lambda ct: 3 * ct, traced=True)
    close(gradient(X), 3 * jnp.ones(3))
    f.def_transpose(lambda ct: 4 * ct)
    close(gradient(X), 4 * jnp.ones(3))


def test_a_replaced_derivative_of_a_derivative_is_seen():
    f = jaxbind.bind(lambda x: x, "(n)->(n)")
    f.def_jvp(lambda p, t: p[0] * t[0])
    f.jvp.def_jvp(lambda p, t: t[0][0] * p[1][0])
    second = jax.jit(lambda x: jax.jvp(lambda x: jax.jvp(f, (x,), (X,))[1], (x,), (Y,))[1])
    close(second(X), X * Y)
    f.jvp.def_jvp(lambda p, t: 5 * t[0][0] * p[1][0])
    close(second(X), 5 * X * Y)


def test_a_replaced_partial_and_jacobian_are_seen():
    f = jaxbind.bind(lambda x: x, "()->()")
    gradient = jax.jit(jax.grad(total(f)))
    f.def_partials(lambda x: 2.0 + 0 * x, traced=False)
    close(gradient(X), 2 * jnp.ones(3))
    f.def_partials(lambda x: 3.0 + 0 * x, traced=False)
    close(gradient(X), 3 * jnp.ones(3))
    f.def_jacobian(lambda x: np.asarray(4.0))
    close(gradient(X), 4 * jnp.ones(3))
    f.def_jacobian(lambda x: 5.0, traced=True)
    close(gradient(X), 5 * jnp.ones(3))


def test_what_was_traced_keeps_its_rule():
    """A linear function that somebody holds, and a program compiled before."""
    f = jaxbind.bind(lambda x: x, "(n)->(n)")
    scaled(f, 2)
    _, push = jax.linearize(f, X)
    lowered = jax.jit(jax.grad(total(f))).lower(X)
    compiled = lowered.compile()
    scaled(f, 3)
    close(push(X), 2 * X)
    close(compiled(X), 2 * jnp.ones(3))
    close(lowered.compile()(X), 2 * jnp.ones(3))
    close(jax.grad(total(f))(X), 3 * jnp.ones(3))


def test_a_replaced_rule_is_freed():
    f = jaxbind.bind(lambda x: x, "(n)->(n)")

    def old(primals, cotangent):
        return 2 * cotangent

    f.def_vjp(old)
    close(jax.grad(total(f))(X), 2 * jnp.ones(3))
    f.def_vjp(lambda p, ct: 3 * ct)
    close(jax.grad(total(f))(X), 3 * jnp.ones(3))
    gone = weakref.ref(old)
    del old
    gc.collect()
    assert gone() is None


# What the declarations return ---------------------------------------------------------------------


def test_declarations_return_the_derivative():
    f = jaxbind.bind(lambda x: x, "(n)->(n)")
    push = f.def_jvp(lambda p, t: t[0])
    pull = f.def_vjp(lambda p, ct: (ct,))
    assert isinstance(push, jaxbind.Binding) and push is f.jvp
    assert isinstance(pull, jaxbind.Binding) and pull is f.vjp
    assert callable(push.function) and callable(pull.function)

    g = jaxbind.bind(lambda x: x, "(n)->(n)", linear=True)
    transpose = g.def_transpose(lambda ct: ct)
    assert isinstance(transpose, jaxbind.Binding) and transpose is g.transpose

    h = jaxbind.bind(lambda x, y: x * y, "(n),(n)->(n)", multilinear=("x", "y"))
    in_x = h.def_transpose("x")(lambda y, ct: y * ct)
    assert isinstance(in_x, jaxbind.Binding) and in_x is h.transpose["x"]


def test_declarations_of_traced_rules_return_the_rule():
    f = jaxbind.bind(lambda x: x, "()->()")

    def push(primals, tangents):
        return tangents[0]

    def pull(primals, cotangent):
        return (cotangent,)

    def one(x):
        return jnp.ones_like(x)

    assert f.def_jvp(traced=True)(push) is push
    assert f.def_vjp(traced=True)(pull) is pull
    assert f.def_partials(one) == (one,)
    assert f.def_jacobian(traced=True)(one) is one
    (partial,) = f.def_partials(lambda x: np.ones_like(x), traced=False)
    assert isinstance(partial, jaxbind.Binding)
    assert isinstance(f.def_jacobian(lambda x: np.ones(())), jaxbind.Binding)


def test_decorators_name_the_derivative():
    @jaxbind.bind("(n)->(n)")
    def f(x):
        return x**2

    @f.def_jvp
    def f_jvp(primals, tangents):
        return 2 * primals[0] * tangents[0]

    close(f_jvp((X,), (Y,)), 2 * X * Y)
    assert "jvp" in repr(f_jvp)


def test_every_vjp_result_may_be_bare_or_a_tuple():
    f = jaxbind.bind(lambda x: x**2, "(n)->(n)")
    for rule in (
        lambda p, ct: 2 * p[0] * ct,
        lambda p, ct: (2 * p[0] * ct,),
        lambda p, ct: [2 * p[0] * ct],
    ):
        for traced in (False, True):
            f.def_vjp(rule, traced=traced)
            close(jax.grad(total(f))(X), 2 * X)


@pytest.mark.parametrize("shortcut", ["partials", "jacobian"])
def test_a_shortcut_takes_the_place_of_earlier_rules(shortcut):
    """In both modes: it is the whole derivative. A pullback that comes after it is its own."""
    f = jaxbind.bind(np.sin, "()->()", vectorized=True)
    f.def_jvp(lambda p, t: 50 * t[0])
    f.def_vjp(lambda p, ct: 100 * ct)
    close(jax.grad(f)(0.5), jnp.asarray(100.0))
    if shortcut == "partials":
        f.def_partials(lambda x: jnp.cos(x))
    else:
        f.def_jacobian(lambda x: np.cos(x))
    close(jax.grad(f)(0.5), jnp.cos(0.5))
    close(jax.jvp(f, (0.5,), (1.0,))[1], jnp.cos(0.5))
    f.def_vjp(lambda p, ct: 3 * ct)
    close(jax.grad(f)(0.5), jnp.asarray(3.0))
    close(jax.jvp(f, (0.5,), (1.0,))[1], jnp.cos(0.5))
