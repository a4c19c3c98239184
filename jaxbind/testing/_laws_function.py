"""Laws about the function itself: its shapes, its memory, its state, and where it stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbind._poison import poisoned
from jaxbind.testing._case import Case, raises
from jaxbind.testing._compare import (
    bitwise_equal,
    difference,
    is_inexact,
    leaves_of,
    numpy_tree,
    same_bits,
    same_kind,
)
from jaxbind.testing._law import Broken, law
from jaxbind.testing._rounding import nudged
from jaxbind.testing._subject import (
    BrokenContract,
    KeptView,
    Static,
    apply_only_if,
    as_jax,
    errors_told_apart,
    key_of,
    skipping_where_it_raises,
)
from jaxbind.testing._violation import Skip


@law("declared shapes and dtypes are those that come out, under both settings of x64", cost=30)
def abstract(case: Case) -> None:
    """For each setting s of x64: ``struct(f(x)) = eval_shape(f, x)``."""
    for x64 in (True, False) if case.narrow else (True,):
        with jax.enable_x64(x64):
            args = as_jax(case.args)
            function = partial(case.subject.function, **case.static)
            declared = jax.eval_shape(function, *args)
            try:
                with skipping_where_it_raises():
                    found = numpy_tree(function(*args))
            except KeptView:
                raise Skip("the function breaks `released`") from None
            except BrokenContract as error:
                if not x64 and _only_wide(str(error)):
                    continue
                where = "" if x64 else "with 32 bits (jax_enable_x64=False) "
                raise Broken(f"got  {where}{error}") from None
        wrong = same_kind(found, declared_zeros(declared))
        if wrong:
            raise Broken(f"got  {wrong} (declared)")


def _only_wide(error: str) -> bool:
    """Whether a function answers 32 bits in 64: refused, like any dtype that is not taken."""
    said = r"returned (float64|complex128)\[.*declared shape and dtype are (float32|complex64)\["
    return bool(re.search(said, error))


def declared_zeros(structs: Any) -> Any:
    return jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), structs)


@law("every element of every result is written, whatever the memory held before", cost=30)
def complete(case: Case) -> None:
    """With results filled with other bytes before each call, the same comes out."""
    apply_only_if(case.subject.binding is not None, "not a binding")
    for name, evaluate in [*evaluations(case), *_in_memory_of_its_own(case)]:
        runs: dict[int, list[list[np.ndarray]]] = {0xA5: [], 0x5A: []}

        def run(times: int, runs: dict = runs, evaluate: Callable = evaluate) -> None:
            for byte in case.rng.permutation([0xA5, 0x5A] * times).tolist():
                with poisoned(byte):
                    runs[byte].append(evaluate())

        run(2)
        if not all(map(same_bits, runs[0xA5], runs[0x5A])):
            run(20)  # to tell it from chance
        for index, (first, second) in enumerate(zip(runs[0xA5][0], runs[0x5A][0], strict=True)):
            old = _filled(first, 0xA5) & _filled(second, 0x5A)
            if all(same_bits(found[0][index], f[index]) for found in runs.values() for f in found):
                old |= ~bitwise_equal(first, second)  # it reads what it does not write
            if np.any(old):
                where = np.argwhere(old)[0].tolist() if old.ndim else "its only element"
                result = f" of result {index}" if len(runs[0xA5][0]) > 1 else ""
                raise Broken(
                    f"got  {int(np.sum(old))} of {old.size} elements{result} of {name} that hold"
                    f" what was in the memory before; the first at {where}",
                    stale=True,
                )


def _in_memory_of_its_own(case: Case) -> list[tuple[str, Callable[[], list]]]:
    """A function with ``aliases=``, called directly with results that are no operand's memory.

    Under JAX they lie there and are not filled; but they only may.
    """
    subject = case.subject
    if subject.binding is not subject.function or not subject.options.aliases:
        return []
    alone = partial(subject.direct, case.args, case.static, memory=np.empty)
    found = [(subject.label, lambda: leaves_of(alone()))]
    return [] if raises(alone) else found


def _filled(x: np.ndarray, byte: int) -> np.ndarray:
    pattern = np.frombuffer(bytes([byte]) * x.dtype.itemsize, x.dtype)[0]
    return bitwise_equal(x, np.full_like(x, pattern))


def evaluations(case: Case, leaves: Any = None) -> list[tuple[str, Callable[[], list]]]:
    """The function and what derivatives it has, as functions of nothing.

    Rules that raise are left to the laws about them.
    """
    _ = case.value
    label = case.subject.label
    args = case.args if leaves is None else case.rebuilt(leaves)
    found = [(label, lambda: leaves_of(case.subject.value(args, case.static)))]
    if not case.results or any(
        raises(partial(case.subject.available, kind, case.args, case.static))
        for kind in ("jvp", "vjp")
    ):
        return found
    forward = case.subject.available("jvp", case.args, case.static)
    if any(forward):
        tangents = case.directions(forward)
        found.append((f"{label}.jvp", lambda: case.pushed(forward, tangents, leaves)))
    reverse = case.subject.available("vjp", case.args, case.static)
    if any(reverse):
        cotangents = case.cotangents()
        found.append((f"{label}.vjp", lambda: case.pulled(reverse, cotangents, leaves)))
    return [(name, evaluate) for name, evaluate in found if not raises(evaluate)]


@law("operands are not modified", cost=20)
def inputs_kept(case: Case) -> None:
    """The bytes of every operand are the same before and after."""
    held = [jnp.array(x) for x in case.leaves]  # before any call: JAX may borrow NumPy's memory
    before = [np.array(x) for x in held]
    for _, call in evaluations(case, held):
        call()
        for x, y, position in zip(before, held, case.owners, strict=True):
            if not np.all(bitwise_equal(x, np.array(y))):
                raise Broken(
                    f"got  argument {position} ({case.subject.parameter(position)}) changed from"
                    f" {x.tolist()} to {np.array(y).tolist()}"
                )


@law("no view of an operand or result is still held after the call", cost=10)
def released(case: Case) -> None:
    """The memory is JAX's again, which will use it for something else."""
    apply_only_if(case.subject.binding is not None, "not a binding")
    try:
        with skipping_where_it_raises():
            case.subject.value(case.args, case.static)
            for _, call in evaluations(case):
                call()
    except KeptView:
        raise
    except BrokenContract:
        raise Skip("another contract is broken (see `abstract`)") from None


@law("the same operands give the same bits", cost=50, batch=1)
def deterministic(case: Case) -> None:
    """Called again, after calls with other operands, it gives what it gave."""
    derived = evaluations(case)
    first = [evaluate() for _, evaluate in derived]
    others = case.variants(2)[1:]
    if case.free:
        others.append(case.scaled(1.75))
    if case.elsewhere is not None:
        others.append(case.elsewhere)
    for (name, evaluate), before in zip(derived, first, strict=True):
        afters = []
        for other in others:  # after each: one of another shape may hide what the others do
            raises(partial(case.subject.value, other, case.static))
            afters.append(evaluate())
        for after in (*afters, evaluate()):
            if not same_bits(before, after):
                shown = difference(after, before, 0.0) or "other bits"
                raise Broken(f"got  {shown} from two calls of {name}", repeated=True)


@law("different static parameters are not confused with each other", cost=20)
def static(case: Case) -> None:
    """In any order, and in one program, each gives what it gives alone."""
    apply_only_if(len(case.statics) > 1, "there is one set of static parameters: give static=[...]")
    subject = case.subject
    nearby = case.rebuilt(nudged(case, [is_inexact(x) for x in case.leaves], 1)[0])

    def values(args: tuple, statics: Sequence[Static]) -> list[Any]:
        with skipping_where_it_raises():
            return [subject.value(args, s) for s in statics]

    alone: list[Any] = []
    if case.elsewhere is not None:  # alone: after a call with other shapes
        for s in case.statics:
            raises(partial(subject.value, case.elsewhere, s))
            alone += values(case.args, [s])
    forwards = values(case.args, case.statics)
    backwards = values(nearby, case.statics[::-1])[::-1]
    again = values(case.args, case.statics[::-1])[::-1]
    for s, a, b in zip(case.statics, forwards, alone, strict=False):
        if not same_bits(a, b):
            raise Broken(
                f"got  {difference(a, b, 0.0)} with {_keywords(s)}, after other static parameters"
                " and alone: the function seems to remember what it made for them"
            )
    for s, a, b, c in zip(case.statics, forwards, backwards, again, strict=True):
        if not same_bits(a, c):
            raise Broken(f"got  {difference(c, a, 0.0)} with {_keywords(s)}, in another order")
        if any(is_inexact(x) for x in leaves_of(a)) and not any(
            np.any(~np.isfinite(x)) for x in leaves_of(a) if is_inexact(x)
        ):
            rtol = max(1e-4, 2e5 * case.eps, case.rtol or 0.0)
            wrong = difference(b, a, rtol, atol=case.slack)
            if wrong and not _jumps(case, s, (a, b), rtol):
                raise Broken(
                    f"got  {wrong} with {_keywords(s)}, after {_keywords(case.statics[-1])}"
                    " (at operands that differ by a rounding error): the function seems to"
                    " remember results by operands alone"
                )

    def together(*args: Any) -> list[Any]:
        return [subject.function(*args, **s) for s in case.statics]

    program = subject.compiled(("statics", *map(key_of, case.statics)), lambda: together)
    for s, a, b in zip(case.statics, forwards, program(*case.args), strict=True):
        wrong = difference(numpy_tree(b), a, case.tolerance(), atol=case.slack)
        if wrong:
            raise Broken(f"got  {wrong} with {_keywords(s)}, in one program with others")


def _jumps(case: Case, static: Static, both: Sequence[Any], rtol: float) -> bool:
    """Whether rounding the operands, with these parameters alone, leads to either of two values.

    The function has a jump there (equal elements that are sorted, a step). One that remembers
    gives the same each time.
    """
    every = [is_inexact(x) for x in case.leaves]
    fresh = [nudged(case, every, 1, ulps=n)[0] for n in range(4, 24)]  # none that was there before
    with skipping_where_it_raises():
        values = [case.subject.value(case.rebuilt(leaves), static) for leaves in fresh]
    return all(any(difference(v, found, rtol) is None for v in values) for found in both)


def _keywords(static: Static) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in static.items()) or "the defaults"


@law("compiled equals eager, also inside scan, cond, while_loop and checkpoint", cost=15)
def jit(case: Case) -> None:
    """``jit(f)(x) = f(x)``, and f gives the same wherever it stands in a program."""
    function = partial(case.subject.function, **case.static)
    want = case.value

    def scan(*args: Any) -> Any:
        return jax.lax.scan(lambda c, _: (c, function(*c)), args, None, length=2)[1]

    def cond(*args: Any) -> Any:
        return jax.lax.cond(jnp.asarray(True), function, lambda *xs: _zeros(function, xs), *args)

    def while_loop(*args: Any) -> Any:
        def body(carry: tuple) -> tuple:
            return carry[0] + 1, function(*args)

        return jax.lax.while_loop(lambda c: c[0] < 2, body, (0, _zeros(function, args)))[1]

    forms = {
        "scan": scan,
        "cond": cond,
        "while_loop": while_loop,
        "checkpoint": jax.checkpoint(function),
    }
    with errors_told_apart():
        eager = numpy_tree(function(*as_jax(case.args)))

        def every(*args: Any) -> dict[str, Any]:
            return {name: form(*args) for name, form in forms.items()}

        program = case.subject.compiled(("forms", case.tree, case.key), lambda: every)
        compiled = numpy_tree(program(*case.args))
    compiled["scan"] = jax.tree.map(lambda x: x[-1], compiled["scan"])
    tolerance = case.tolerance()
    wrong = difference(want, eager, tolerance, atol=case.slack)
    if wrong:
        raise Broken(f"got  {wrong} compiled and eager")
    for name, got in compiled.items():
        wrong = difference(got, want, tolerance, atol=case.slack)
        if wrong:
            raise Broken(f"got  {wrong} inside {name} and alone")


def _zeros(function: Callable, args: Sequence[Any]) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, *args))
