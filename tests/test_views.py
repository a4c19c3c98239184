"""What a function may do with its views of JAX's memory: not write, not keep them."""

import functools
import gc
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from failing import ROUTES, elementwise, message, routes, x

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

# Operands are read-only ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda v: v.__setitem__(0, 9.0),
        lambda v: v.__iadd__(1),
        lambda v: v.sort(),
        lambda v: v.fill(0),
        lambda v: np.add(v, 1, out=v),
        lambda v: v[1:].__setitem__(0, 9.0),
        lambda v: np.asarray(memoryview(v)).__setitem__(0, 9.0),
        lambda v: v.view("i8").__setitem__(0, 9),
        lambda v: v.setflags(write=True),
        lambda v: setattr(v.flags, "writeable", True),
        lambda v: v.resize(7, refcheck=False),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("options", [{}, {"compute_dtype": "float32"}, {"order": "F"}], ids=str)
def test_operands_cannot_be_written_to(write, options):
    def writes(v):
        write(v)
        return v.copy()

    operand = jnp.arange(3.0)
    text = message(elementwise(writes, **options), operand)
    assert "ValueError" in text and "raised in writes" in text
    if "read-only" in text:
        assert "work on a copy (x = x.copy()), or write the result into the parameter `out`" in text
    np.testing.assert_array_equal(operand, x)


def change_shape(v):
    v.shape = (*v.shape, 1)


def change_dtype(v):
    v.dtype = "i8"


def change_strides(v):
    v.strides = (0,)


def change_flags(v):
    v.flags.writeable = False


@pytest.mark.parametrize("change", [change_shape, change_dtype, change_strides, change_flags])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_what_a_function_does_to_its_views_does_not_last(change, in_place):
    seen = []

    def note(*arrays):
        seen.append([(a.shape, a.dtype, a.strides, a.flags.writeable) for a in arrays])

    def returned(v):
        note(v)
        result = v.copy()
        change(v)
        return result

    def written(v, *, out):
        note(v, out)
        np.copyto(out, v)
        change(v)
        change(out)

    f = elementwise(written if in_place else returned)
    compiled = jax.jit(f)
    for _ in range(3):
        np.testing.assert_array_equal(f(x), x)
        np.testing.assert_array_equal(compiled(x), x)
        np.testing.assert_array_equal(jax.vmap(f)(np.stack([x, -x])), np.stack([x, -x]))
    assert all(s == seen[0] for s in seen)


# Views that are kept ------------------------------------------------------------------------------

held = []


class Box:
    pass


def in_attribute(v):
    box = Box()
    box.view = v
    held.append(box)


def in_generator(v):
    generator = (e for e in v)
    next(generator)
    held.append(generator)


def in_exception(v):
    try:
        raise ValueError
    except ValueError as error:
        held.append(error)


def in_thread(v):
    gate = threading.Event()
    held.append(gate)
    threading.Thread(target=lambda view: gate.wait(30), args=(v,), daemon=True).start()


def in_default(v):
    held.append(eval("lambda view=v: view", {"v": v}))


KEPT = {
    "list": held.append,
    "slice": lambda v: held.append(v[1:]),
    "scalar view": lambda v: held.append(v[1:2].reshape(())),
    "dict": lambda v: held.append({"v": v}),
    "attribute": in_attribute,
    "closure": lambda v: held.append(lambda: v),
    "default": in_default,
    "partial": lambda v: held.append(functools.partial(np.add, v)),
    "method": lambda v: held.append(v.sum),
    "generator": in_generator,
    "iterator": lambda v: held.append(iter(v)),
    "flat": lambda v: held.append(v.flat),
    "nditer": lambda v: held.append(np.nditer(v)),
    "memoryview": lambda v: held.append(memoryview(v)),
    "frombuffer": lambda v: held.append(np.frombuffer(v)),
    "ctypes": lambda v: held.append(v.ctypes),
    "transposed": lambda v: held.append(v.T),
    "other dtype": lambda v: held.append(v.view("i8")),
    "broadcast": lambda v: held.append(np.broadcast_to(v, (2, 3))),
    "subclass": lambda v: held.append(v.view(np.recarray)),
    "exception": in_exception,
    "thread": in_thread,
}


@pytest.fixture
def release():
    yield
    for thing in held:
        if isinstance(thing, threading.Event):
            thing.set()
    held.clear()


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("what", ["operand", "result"])
def test_a_kept_view_is_an_error(kind, what, release):
    keep = KEPT[kind]
    careful = [False]

    def function(a, v, *, out):
        np.copyto(out, v)
        if not careful[0]:
            keep(v if what == "operand" else out)

    f = jaxbind.bind("(n),(n)->(n)", name="f")(function)
    name = "argument 1 (v)" if what == "operand" else "its result"
    text = message(f, x, x)
    if kind == "exception":  # its frame holds them all
        name = "argument 0 (a)"
    assert f"f kept a view of {name}" in text and "keep a copy instead (x.copy())" in text
    assert "called with a: float64[3], v: float64[3]" in text
    careful[0] = True  # views that are held do not disturb later calls
    for k in range(3):
        np.testing.assert_array_equal(f(x, x + k), x + k)


@routes
def test_a_kept_view_on_every_way(route, release):
    text = message(ROUTES[route](elementwise(lambda v: held.append(v) or v + 1, name="f")), x)
    assert "f kept a view of argument 0 (v) after it returned" in text


def test_a_view_inside_of_what_is_returned_is_fine():
    """It is copied and let go."""
    f = jaxbind.bind(
        lambda v: {"a": v[::-1], "b": [v, v[:1]]},
        out=lambda v: {"a": v, "b": [v, jax.ShapeDtypeStruct((1,), v.dtype)]},
    )
    got = f(x)
    np.testing.assert_array_equal(got["a"], x[::-1])
    np.testing.assert_array_equal(got["b"][1], x[:1])
    for function in (
        lambda v: v,
        lambda v: v[::-1],
        lambda v: v.T,
        lambda v: np.broadcast_to(v, 3),
    ):
        np.testing.assert_array_equal(elementwise(function)(x), function(x))


def test_a_view_inside_of_a_wrong_result_is_not_kept():
    f = elementwise(lambda v: [v, {"a": v}, (e for e in v)], name="f")
    assert "f returned a list of 3" in message(f, x)


def test_a_reference_cycle_is_not_blamed():
    def function(v):
        box = Box()
        box.view, box.itself = v, box
        try:
            raise ValueError
        except ValueError as error:
            box.error = error  # frame -> box -> error -> frame
        return v + 1

    f = elementwise(function)
    gc.disable()
    try:
        np.testing.assert_array_equal(f(x), x + 1)
        np.testing.assert_array_equal(jax.vmap(f)(np.ones((5, 3))), np.full((5, 3), 2.0))
    finally:
        gc.enable()


def test_a_view_kept_only_while_the_function_runs_is_fine():
    def function(v):
        local = [v, v[1:], lambda: v]
        worker = threading.Thread(target=lambda: local.append(v.sum()))
        worker.start()
        worker.join()
        return v + local[-1]

    np.testing.assert_array_equal(elementwise(function)(x), x + 3)


def test_kept_views_of_converted_operands(release):
    text = message(elementwise(lambda v: held.append(v) or v, compute_dtype="float32", name="f"), x)
    assert "f kept a view of argument 0 (v)" in text
    np.testing.assert_array_equal(held[0].shape, (3,))


# What outlives an error ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "derive", [lambda v: v, lambda v: v[1:], lambda v: memoryview(v), lambda v: v.T]
)
def test_views_that_are_kept_by_a_function_that_fails_are_named(derive):
    kept = []

    def fails(v):
        kept.append(derive(v))
        raise ValueError("no")

    text = message(elementwise(fails), x)
    assert text.startswith("INTERNAL: ValueError: no")
    assert "a view of argument 0 (v) is still held, by the function or by what its exc" in text
    fails = elementwise(lambda v: v.no_such_method())  # the exception has it as an attribute
    assert "is still held" not in message(fails, x)


def test_masked_results_are_refused():
    text = message(elementwise(lambda v: np.ma.masked_greater(v, 1)), x)
    assert "returned a masked array for its result, and JAX has no masks: fill it" in text
    mean = jaxbind.bind(lambda v: np.ma.masked_all(3).mean(), "(n)->()")
    assert "returned a masked array" in message(mean, x)
    f = elementwise(lambda v: np.ma.masked_greater(v, 1e9))  # nothing is masked
    np.testing.assert_array_equal(f(x), x)


def test_weak_references_die_with_the_call():
    refs = []

    def refers(v):
        refs.append(weakref.ref(v))
        return 2 * v

    f = elementwise(refers)
    for _ in range(3):
        np.testing.assert_array_equal(f(x), 2 * x)
    assert [ref() for ref in refs] == [None, None, None]


@pytest.mark.parametrize(
    ("out", "spoil", "where"),
    [
        (lambda v: {"a": v, "b": v}, lambda out: out.update(b=out["b"] + 1), "out['b']"),
        (lambda v: [v, v], lambda out: out.__setitem__(0, 1.0), "out[0]"),
        (lambda v: {"a": [v], "b": v}, lambda out: out["a"].__setitem__(0, 1.0), "out['a'][0]"),
        (lambda v: [v, v], lambda out: out.append(1), "out"),
    ],
    ids=range(4),
)
def test_entries_of_out_that_are_replaced(out, spoil, where):
    def spoils(v, out):
        for leaf in jax.tree.leaves(out):
            leaf[...] = v
        spoil(out)

    text = message(jaxbind.bind(spoils, out=out), x)
    assert f"spoils replaced {where}, which holds JAX's memory" in text
    assert f"write into it: {where}[...] = ..." in text
