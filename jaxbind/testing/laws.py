"""The laws of a binding: what must be true of it, each a function of concrete arguments.

``laws.adjoint(f, args)`` raises `jaxbind.testing.LawViolation` if the law is broken there, and
`Skip` if it says nothing; `LAWS` has them all, in order. In the comments and messages f is the
function, J its Jacobian at the arguments, v a tangent, w a cotangent, Jᵀ the transpose without
conjugation. For complex numbers ``<a, b> = sum(a * b)``, again without conjugation; where J is
linear only over the real numbers (``conj``, ``real``), real parts are compared.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_structure, tree_unflatten

from jaxbind import _identity
from jaxbind._roles import GENERAL, NONDIFF
from jaxbind.testing import _mapping
from jaxbind.testing._case import Case, packed
from jaxbind.testing._compare import (
    ROUNDING,
    bitwise_equal,
    difference,
    is_complex,
    is_inexact,
    leaves_of,
    magnitude,
    number,
    numpy_tree,
    same_bits,
    same_kind,
)
from jaxbind.testing._numerical import Derivative
from jaxbind._poison import poisoned
from jaxbind.testing._subject import (
    BrokenContract,
    Static,
    Subject,
    UserError,
    apply_only_if,
    as_jax,
    errors_told_apart,
    need,
    subsets,
)
from jaxbind.testing._violation import Inapplicable, LawViolation, Skip

__all__ = ["LAWS", "Law", "Skip"]  # and each law, below


class Broken(Exception):
    """A law is broken; with what was found, and what a diagnosis needs to know."""

    def __init__(self, found: str, **detail: Any):
        super().__init__(found)
        self.detail = detail


@dataclass(frozen=True)
class Law:
    """A law: call it with a binding and concrete arguments.

    Attributes:
      name: one word.
      statement: the law in one sentence.
      run: checks it on a `Case`.
      cost: of a hundred examples, how many are worth their time.
      batch: how many further examples of the same shapes it combines.
    """

    name: str
    statement: str
    run: Callable[[Case], None]
    cost: int
    batch: int
    __doc__: str | None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __repr__(self) -> str:
        return f"<law {self.name}: {self.statement}>"

    def __call__(
        self,
        f: Any,
        args: Sequence[Any],
        *,
        static: Static | None = None,
        more: Sequence[Sequence[Any]] = (),
        statics: Sequence[Static] = (),
        seed: int = 0,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> None:
        """Check the law on concrete arguments.

        Args:
          f: a binding.
          args: its positional arguments; 64-bit dtypes are kept, whatever JAX's setting.
          static: its static keywords.
          more: further arguments of the same shapes and dtypes, for laws about batches (they
            make them from ``args`` otherwise).
          statics: several mappings of static keywords, for the law about them.
          seed: of the directions that are drawn.
          rtol, atol: tolerances instead of those that follow from dtype and error estimate.

        Raises:
          LawViolation: if it is broken.
          Skip: if it says nothing about these arguments; the text says why.
        """
        case = Case(
            Subject.of(f),
            tuple(args),
            static,
            more=[tuple(m) for m in more],
            statics=statics,
            seed=seed,
            rtol=rtol,
            atol=atol,
        )
        self.check(case)

    def check(self, case: Case) -> None:
        """Check a case, in 64 bits."""
        try:
            with jax.enable_x64(True):
                self.run(case)
        except (Skip, LawViolation):
            raise
        except Exception as error:  # a rule may raise anything, also while JAX traces it
            detail = getattr(error, "detail", {})
            text = str(error).partition("\n--------------------")[0]
            if isinstance(error, (BrokenContract, UserError)):
                text = f"got  {text}"
            elif not isinstance(error, Broken):
                text = f"got  {type(error).__name__}: {text}"
            violation = LawViolation(
                self.name, case.subject.label, self.statement, text, example=case.text()
            )
            violation.case, violation.detail = case, detail  # pyright: ignore[reportAttributeAccessIssue]
            raise violation from None


#: all laws, in the order in which they are explained
LAWS: dict[str, Law] = {}


def law(statement: str, *, cost: int = 100, batch: int = 0) -> Callable[[Callable], Law]:
    def register(run: Callable[[Case], None]) -> Law:
        name = run.__name__
        made = LAWS[name] = Law(name, statement, run, cost, batch, run.__doc__)
        __all__.append(name)
        return made

    return register


# The function itself -----------------------------------------------------------------------------


@law("declared shapes and dtypes are those that come out, under both settings of x64", cost=30)
def abstract(case: Case) -> None:
    """For each setting s of x64: ``struct(f(x)) = eval_shape(f, x)``."""
    for x64 in (True, False) if case.narrow else (True,):
        with jax.enable_x64(x64):
            args = as_jax(case.args)
            function = partial(case.subject.function, **case.static)
            declared = jax.eval_shape(function, *args)
            try:
                with errors_told_apart():
                    found = numpy_tree(function(*args))
            except BrokenContract as error:
                if "kept a view" in str(error):
                    raise Skip("the function keeps a view (see `released`)") from None
                where = "" if x64 else "with 32 bits (jax_enable_x64=False) "
                raise Broken(f"got  {where}{error}") from None
            except UserError as error:
                raise Skip(f"the function raises: {str(error).splitlines()[0]}") from None
        wrong = same_kind(found, declared_zeros(declared))
        if wrong:
            raise Broken(f"got  {wrong} (declared)")


def declared_zeros(structs: Any) -> Any:
    return jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), structs)


@law("every element of every result is written, whatever the memory held before", cost=30)
def complete(case: Case) -> None:
    """With results filled with other bytes before each call, the same comes out."""
    apply_only_if(case.subject.binding is not None, "not a binding")
    for name, evaluate in _evaluations(case):
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


def _filled(x: np.ndarray, byte: int) -> np.ndarray:
    pattern = np.frombuffer(bytes([byte]) * x.dtype.itemsize, x.dtype)[0]
    return bitwise_equal(x, np.full_like(x, pattern))


def _evaluations(case: Case, leaves: Any = None) -> list[tuple[str, Callable[[], list]]]:
    """The function and what derivatives it has, as functions of nothing.

    Rules that raise are left to the laws about them.
    """
    _ = case.value
    label = case.subject.label
    args = case.args if leaves is None else tree_unflatten(_tree(case), leaves)
    found = [(label, lambda: leaves_of(case.subject.value(args, case.static)))]
    if not case.results:
        return found
    forward = case.subject.available("jvp", case.args, case.static)
    if any(forward):
        tangents = case.directions(forward)
        found.append((f"{label}.jvp", lambda: case.pushed(forward, tangents, leaves)))
    reverse = case.subject.available("vjp", case.args, case.static)
    if any(reverse):
        cotangents = case.cotangents()
        found.append((f"{label}.vjp", lambda: case.pulled(reverse, cotangents, leaves)))
    return [(name, evaluate) for name, evaluate in found if not _raises(evaluate)]


def _raises(evaluate: Callable[[], Any]) -> bool:
    try:
        evaluate()
    except BrokenContract as error:
        return "kept a view" not in str(error)
    except Exception:
        return True
    return False


@law("operands are not modified", cost=20)
def inputs_kept(case: Case) -> None:
    """The bytes of every operand are the same before and after."""
    _ = case.value
    held = [jnp.array(x) for x in case.leaves]
    before = [np.array(x) for x in held]
    for _, call in _evaluations(case, held):
        call()
        for x, y, position in zip(before, held, case.owners, strict=True):
            if not np.all(bitwise_equal(x, np.array(y))):
                raise Broken(
                    f"got  argument {position} ({case.subject.parameter(position)}) changed from"
                    f" {x.tolist()} to {np.array(y).tolist()}"
                )


def _tree(case: Case) -> Any:
    return tree_structure(case.args)


@law("no view of an operand or result is still held after the call", cost=10)
def released(case: Case) -> None:
    """The memory is JAX's again, which will use it for something else."""
    apply_only_if(case.subject.binding is not None, "not a binding")
    try:
        evaluations = [lambda: case.value]
        with errors_told_apart():
            evaluations += [call for _, call in _evaluations(case)]
            for call in evaluations:
                call()
    except BrokenContract as error:
        if "kept a view" in str(error):
            raise
        raise Skip("another contract is broken (see `abstract`)") from None


@law("the same operands give the same bits", cost=50, batch=1)
def deterministic(case: Case) -> None:
    """Called again, after calls with other operands, it gives what it gave."""
    evaluations = _evaluations(case)
    first = [evaluate() for _, evaluate in evaluations]
    others = _mapping.variants(case, 2)[1:]
    if case.free:
        others.append(_mapping.scaled(case, 1.75))
    if case.elsewhere is not None:
        others.append(case.elsewhere)
    for (name, evaluate), before in zip(evaluations, first, strict=True):
        for other in others:
            _raises(partial(case.subject.value, other, case.static))
        for after in (evaluate(), evaluate()):
            if not same_bits(before, after):
                shown = difference(after, before, 0.0) or "other bits"
                raise Broken(f"got  {shown} from two calls of {name}", repeated=True)


@law("different static parameters are not confused with each other", cost=20)
def static(case: Case) -> None:
    """In any order, and in one program, each gives what it gives alone."""
    apply_only_if(len(case.statics) > 1, "there is one set of static parameters: give static=[...]")
    subject = case.subject
    nearby = tree_unflatten(_tree(case), case.nudged([is_inexact(x) for x in case.leaves], 1)[0])

    def values(args: tuple, statics: Sequence[Static]) -> list[Any]:
        with errors_told_apart():
            return [subject.value(args, s) for s in statics]

    alone: list[Any] = []
    try:
        if case.elsewhere is not None:  # alone: after a call with other shapes
            for s in case.statics:
                _raises(partial(subject.value, case.elsewhere, s))
                alone += values(case.args, [s])
        forwards = values(case.args, case.statics)
        backwards = values(nearby, case.statics[::-1])[::-1]
        again = values(case.args, case.statics[::-1])[::-1]
    except UserError as error:
        raise Skip(f"the function raises: {str(error).splitlines()[0]}") from None
    for s, a, b in zip(case.statics, forwards, alone, strict=False):
        if not same_bits(a, b):
            raise Broken(
                f"got  {difference(a, b, 0.0)} with {_keywords(s)}, after other static parameters and"
                " alone: the function seems to remember what it made for them"
            )
    for s, a, b, c in zip(case.statics, forwards, backwards, again, strict=True):
        if not same_bits(a, c):
            raise Broken(f"got  {difference(c, a, 0.0)} with {_keywords(s)}, in another order")
        if any(is_inexact(x) for x in leaves_of(a)) and not any(
            np.any(~np.isfinite(x)) for x in leaves_of(a) if is_inexact(x)
        ):
            wrong = difference(b, a, max(1e-4, 2e5 * case.eps))
            if wrong:
                raise Broken(
                    f"got  {wrong} with {_keywords(s)}, after {_keywords(case.statics[-1])}"
                    " (at operands that differ by a rounding error): the function seems to"
                    " remember results by operands alone"
                )

    def together(*args: Any) -> list[Any]:
        return [subject.function(*args, **s) for s in case.statics]

    program = subject.compiled(("statics", str(case.statics)), lambda: together)
    for s, a, b in zip(case.statics, forwards, program(*case.args), strict=True):
        wrong = difference(numpy_tree(b), a, ROUNDING * case.eps)
        if wrong:
            raise Broken(f"got  {wrong} with {_keywords(s)}, in one program with others")


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

    forms = {"scan": scan, "cond": cond, "while_loop": while_loop, "checkpoint": None}
    forms["checkpoint"] = jax.checkpoint(function)
    with errors_told_apart():
        eager = numpy_tree(function(*as_jax(case.args)))

        def every(*args: Any) -> dict[str, Any]:
            return {name: form(*args) for name, form in forms.items()}

        program = case.subject.compiled(("forms", _tree(case), _keywords(case.static)), lambda: every)
        compiled = numpy_tree(program(*case.args))
    compiled["scan"] = jax.tree.map(lambda x: x[-1], compiled["scan"])
    tolerance = case.tolerance()
    wrong = difference(want, eager, tolerance)
    if wrong:
        raise Broken(f"got  {wrong} compiled and eager")
    for name, got in compiled.items():
        wrong = difference(got, want, tolerance)
        if wrong:
            raise Broken(f"got  {wrong} inside {name} and alone")


def _zeros(function: Callable, args: Sequence[Any]) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, *args))


# Derivatives -------------------------------------------------------------------------------------


@law("the pushforward is the derivative")
def jvp(case: Case) -> None:
    """``J v = lim (f(x + h v) - f(x - h v)) / 2h``, by differences with an error estimate."""
    wrt = _with_rules(case, "jvp")
    case.need_finite()
    judged = False
    for scaled in ("unit", "relative"):
        v = case.directions(wrt, scaled)
        claimed = packed(case.pushed(wrt, v))
        estimate = case.numerical(wrt, v)
        allowed = _allowed(case, wrt, v, claimed, estimate)
        judged |= bool(np.any(estimate.known))
        wrong = _first_wrong(claimed, estimate, allowed)
        if wrong is not None:
            place = f" in element {wrong}" if claimed.size > 1 else ""
            raise Broken(
                f"got  J v = {number(claimed[wrong])}   and   {number(estimate.value[wrong])}"
                f" by differences (error {estimate.error[wrong]:.1g}){place},"
                f" differentiating {case.named(wrt)} along"
                f" {', '.join(np.array2string(t, precision=6) for t in v)}",
                matrix="jvp",
                wrt=wrt,
                gap=abs(claimed[wrong] - estimate.value[wrong]),
                size=abs(estimate.value[wrong]),
                error=estimate.error[wrong],
            )
    need(judged, "no numerical derivative can be had (kinks, jumps, noise, or a value not finite)")


def _with_rules(case: Case, mode: str) -> tuple[bool, ...]:
    """The leaves that can be differentiated in this mode."""
    wanted = case.subject.differentiable(case.args)
    apply_only_if(any(wanted), "no argument has a derivative (integer, boolean, or nondiff)")
    _ = case.value
    need(bool(case.results), "no result has a derivative")
    found = case.subject.available(mode, case.args, case.static)
    if not any(found):
        reason = case.subject.missing(mode, case.args, case.static, wanted) or ""
        raise Inapplicable(f"no rule for {'forward' if mode == 'jvp' else 'reverse'} mode: {reason}")
    return found


def _allowed(
    case: Case,
    wrt: tuple[bool, ...],
    v: Sequence[Any],
    claimed: np.ndarray,
    estimate: Derivative,
) -> np.ndarray:
    """How far a right rule may be from the estimate: its error, kinks, and rounding."""
    rounding = case.sensitivity(lambda leaves: packed(case.pushed(wrt, v, leaves)), wrt)
    size = np.maximum(np.abs(claimed), np.abs(estimate.value))
    largest = np.max(np.where(np.isfinite(size), size, 0.0), initial=0.0)
    relative = case.rtol if case.rtol is not None else max(ROUNDING * case.eps, 2e-9)
    return (
        10 * estimate.error
        + estimate.jump
        + 8 * rounding
        + relative * size
        + ROUNDING * case.eps * largest
        + case.floor()
        + case.slack
    )


def _first_wrong(claimed: np.ndarray, estimate: Derivative, allowed: np.ndarray) -> int | None:
    """The element that differs most, relative to what is allowed."""
    with np.errstate(all="ignore"):
        excess = np.abs(claimed - estimate.value) / np.maximum(allowed, 1e-300)
        judged = estimate.known & np.isfinite(allowed)
        # a rule that gives NaN or infinity, where f is smooth
        smooth = estimate.known & (estimate.jump <= 1e-6 * np.maximum(np.abs(estimate.value), estimate.scale))
        excess = np.where(np.isfinite(claimed), np.where(judged, excess, 0), np.where(smooth, 1e9, 0))
    if excess.size == 0 or np.max(excess) <= 1:
        return None
    return int(np.argmax(excess))


@law("the pushforward is linear in the tangent", cost=60)
def jvp_linear(case: Case) -> None:
    """``J (a v + b u) = a J v + b J u``."""
    wrt = _with_rules(case, "jvp")
    case.need_finite()
    v, u = case.directions(wrt), case.directions(wrt)
    a, b = 1.5, -0.75
    if _raises(lambda: case.pushed(wrt, v)):
        raise Skip("the rule raises (see `jvp`)")
    mixed = case.pushed(wrt, [np.asarray(a * x + b * y, x.dtype) for x, y in zip(v, u, strict=True)])
    first, second = case.pushed(wrt, v), case.pushed(wrt, u)
    apart = [np.asarray(a * x + b * y, x.dtype) for x, y in zip(first, second, strict=True)]
    rounding = 8 * case.sensitivity(lambda leaves: packed(case.pushed(wrt, v, leaves)), wrt)
    wide = [packed([x]) for x in mixed], [packed([x]) for x in apart]
    slack = _like(wide[0], rounding + case.floor() + case.slack)
    scale = max(magnitude(x) for x in (first, second, mixed, case.value))
    # rounding to single precision is not linear either, but another fault (see `jvp`)
    wrong = difference(*wide, case.tolerance(max(ROUNDING, 1e-6 / case.eps)), slack, scale)
    if wrong:
        raise Broken(f"got  J(a v + b u) and a J v + b J u = {wrong}", matrix="jvp", wrt=wrt)


def _like(arrays: Sequence[np.ndarray], flat: Any) -> list[np.ndarray]:
    """Cut a flat vector into pieces of the sizes of ``arrays``."""
    ends = np.cumsum([a.size for a in arrays])[:-1]
    return np.split(np.broadcast_to(flat, (sum(a.size for a in arrays),)), ends)


@law("<w, J v> = <Jᵀ w, v>")
def adjoint(case: Case) -> None:
    """For real and complex operands, and for every subset of differentiated arguments."""
    reverse = _with_rules(case, "vjp")
    case.need_finite()
    every = subsets(reverse, case.owners)
    if not all(reverse):
        every = [s for s in every if not case.subject.missing("vjp", case.args, case.static, s)]
    chosen = {every[0], every[case.rng.integers(len(every))]}
    for wrt in sorted(chosen, reverse=True):
        _adjoint_of(case, wrt, None)
    if len(case.results) > 1:  # some results not used at all: their cotangents are zero
        used = [bool(b) for b in case.rng.integers(0, 2, len(case.results))]
        if any(used) and not all(used):
            _adjoint_of(case, every[0], tuple(used))


def _adjoint_of(case: Case, wrt: tuple[bool, ...], used: tuple[bool, ...] | None) -> None:
    v, w = case.directions(wrt), case.cotangents()
    if used is not None:
        w = [x if keep else np.zeros_like(x) for x, keep in zip(w, used, strict=True)]
    given = w if used is None else [x for x, keep in zip(w, used, strict=True) if keep]
    pulled = case.pulled(wrt, given, results=used)
    right = _pairing(pulled, v)
    ruled = case.subject.missing("jvp", case.args, case.static, wrt) is None
    moved = case.sensitivity(
        lambda leaves: np.asarray([_pairing(case.pulled(wrt, given, leaves, used), v).real]), wrt
    )
    estimate = None
    if ruled:
        pushed = case.pushed(wrt, v)
        left = _pairing(w, pushed)
        allowed = 8 * moved[0] + ROUNDING * case.eps * (_size(w, pushed) + _size(pulled, v))
        allowed += float(np.sum(np.abs(packed(w)) * case.floor()))
        if case.rtol is not None:
            allowed += case.rtol * abs(left)
        if abs(left.real - right.real) <= allowed + case.slack:
            return
    estimate = case.numerical(wrt, v)
    numerical, allowed, known = _numerical_pairing(case, w, estimate, pulled, v, moved[0])
    agrees = abs(numerical.real - right.real) <= allowed
    if known and agrees:
        return  # where jvp differs, it is jvp that is wrong
    if not ruled:
        need(known, "no numerical derivative can be had (kinks, jumps, noise)")
        left = numerical
    if np.isnan(left.real) and not known:
        raise Skip("the pushforward is not finite, and there is no numerical derivative")
    # with a J that is linear over the complex numbers, so are both sides
    show = number if any(map(is_complex, [*v, *w])) and _complex_linear(case, wrt) else _real
    zeros = "" if used is None else f", with results {_chosen(used)} used"
    raise Broken(
        f"got  <w, J v> = {show(left)}   and   <Jᵀ w, v> = {show(right)},"
        f" differentiating {case.named(wrt)}{zeros}"
        + ("" if ruled else " (J v by differences)"),
        matrix="vjp",
        wrt=wrt,
        used=used,
        gap=abs(left.real - right.real),
        size=abs(left.real),
        error=0.0 if ruled else allowed,
    )


def _real(x: complex) -> str:
    return number(x.real)


def _chosen(used: Sequence[bool]) -> str:
    return ", ".join(str(i) for i, keep in enumerate(used) if keep)


def _pairing(a: Sequence[Any], b: Sequence[Any]) -> complex:
    """``sum(a * b)``, without conjugation."""
    with np.errstate(all="ignore"):
        return complex(
            sum(np.sum(_wide(x) * _wide(y)) for x, y in zip(a, b, strict=True)) if a else 0.0
        )


def _wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(complex)


def _size(a: Sequence[Any], b: Sequence[Any]) -> float:
    """The sum of absolute values of what `_pairing` adds up."""
    return float(sum(np.sum(np.abs(_wide(x) * _wide(y))) for x, y in zip(a, b, strict=True)))


def _numerical_pairing(
    case: Case,
    w: Sequence[Any],
    estimate: Derivative,
    pulled: Sequence[Any],
    v: Sequence[Any],
    moved: float,
) -> tuple[complex, float, bool]:
    """``<w, J v>`` by differences, what it may be off, and whether it is known at all."""
    weights = packed([np.conj(x) for x in w])  # Re(w z) = Re w Re z - Im w Im z
    used = weights != 0
    if not np.all(estimate.known[used]):
        return complex(np.nan), np.inf, False
    weights, value = weights[used], estimate.value[used]
    total = float(np.sum(weights * value))
    relative = case.rtol if case.rtol is not None else max(ROUNDING * case.eps, 2e-9)
    allowed = (
        np.sum(np.abs(weights) * (10 * estimate.error + estimate.jump)[used])
        + relative * np.sum(np.abs(weights * value))
        + ROUNDING * case.eps * _size(pulled, v)
        + 8 * moved
        + np.sum(np.abs(packed(w)) * case.floor())
        + case.slack
    )
    return complex(total), float(allowed), True


def _complex_linear(case: Case, wrt: tuple[bool, ...]) -> bool:
    """Whether ``J (i v) = i J v``."""
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    if not all(map(is_complex, chosen)):
        return False
    v = case.directions(wrt)
    try:
        turned = case.pushed(wrt, [1j * x for x in v])
        same = [1j * x for x in case.pushed(wrt, v)]
    except (TypeError, UserError, BrokenContract):
        return False
    return difference(turned, same, 1e-6) is None


@law("a function declared linear is: f(a x + b y) = a f(x) + b f(y), and f(0) = 0", cost=60, batch=1)
def linear(case: Case) -> None:
    """For the arguments declared jointly linear together, for multilinear ones one by one."""
    groups = _linear_groups(case)
    apply_only_if(bool(groups), "nothing is declared linear or multilinear")
    _ = case.value
    other = _mapping.variants(case, 2)[1]
    others = jax.tree.leaves(other)
    for kind in groups:
        member = [g == kind and is_inexact(x) for g, x in zip(_kinds(case), case.leaves, strict=True)]
        names = case.named(member)

        def at(combine: Callable, member: list[bool] = member) -> tuple[list, list]:
            leaves = [
                np.asarray(combine(x, y), x.dtype) if m else x
                for x, y, m in zip(case.leaves, others, member, strict=True)
            ]
            with errors_told_apart():
                value = case.subject.value(tree_unflatten(_tree(case), leaves), case.static)
            return leaves, leaves_of(value)

        a, b = 1.5, -0.75
        try:
            x, y = at(lambda x, y: x)[1], at(lambda x, y: y)[1]
            mixed, zero = at(lambda x, y: a * x + b * y)[1], at(lambda x, y: 0 * x)[1]
        except UserError as error:
            raise Skip(f"the function raises: {str(error).splitlines()[0]}") from None
        if not all(np.all(np.isfinite(r)) for r in [*x, *y, *mixed] if is_inexact(r)):
            raise Skip("the function's value is not finite")
        scale = max(magnitude(x), magnitude(y), magnitude(mixed))
        wide: Any = [np.asarray(p).astype(complex if is_complex(p) else float) for p in mixed]
        apart = [a * p.astype(q.dtype) + b * r.astype(q.dtype) for p, r, q in zip(x, y, wide, strict=True)]
        moved = case.sensitivity(
            lambda leaves: packed(
                [r for r in leaves_of(case.subject.value(tree_unflatten(_tree(case), leaves), case.static))]
            ),
            tuple(member),
        )
        slack = float(np.max(moved, initial=0.0)) * 8 + case.slack
        tolerance = case.tolerance() * scale + slack
        if magnitude(zero) > tolerance:
            raise Broken(
                f"got  f(0) = {number(_largest(zero))} in {names}: the function has a constant term"
            )
        wrong = difference(wide, apart, 0.0, [np.full(p.shape, tolerance) for p in wide])
        if wrong:
            raise Broken(f"got  f(a x + b y) and a f(x) + b f(y) = {wrong}, in {names}")


def _largest(arrays: Sequence[np.ndarray]) -> Any:
    return max((x.reshape(-1)[np.argmax(np.abs(x))] for x in arrays if x.size), key=abs)


def _kinds(case: Case) -> list[Any]:
    return [case.subject.kind(position) for position in case.owners]


def _linear_groups(case: Case) -> list[Any]:
    kinds = [k for k, x in zip(_kinds(case), case.leaves, strict=True) if is_inexact(x)]
    return [kind for kind in dict.fromkeys(kinds) if kind not in (GENERAL, NONDIFF)]


@law("transposing twice gives the function back", cost=30)
def transpose_transpose(case: Case) -> None:
    """For linear f: ``(fᵀ)ᵀ (x) = f(x)``, in each argument in which it is linear."""
    groups = _linear_groups(case)
    apply_only_if(bool(groups), "nothing is declared linear or multilinear")
    want = [r for r in leaves_of(case.value) if is_inexact(r)]
    ran = False
    for kind in groups:
        wrt = tuple(g == kind and is_inexact(x) for g, x in zip(_kinds(case), case.leaves, strict=True))
        if case.subject.missing("vjp", case.args, case.static, wrt):
            continue
        ran = True
        tree = _tree(case)

        def twice(leaves: list, wrt: tuple[bool, ...] = wrt, tree: Any = tree) -> list:
            chosen = [x for x, keep in zip(leaves, wrt, strict=True) if keep]

            def inner(chosen: list) -> list:
                rest = iter(chosen)
                full = [next(rest) if k else x for x, k in zip(leaves, wrt, strict=True)]
                found = case.subject.function(*tree_unflatten(tree, full), **case.static)
                return [r for r in jax.tree.leaves(found) if is_inexact(r)]

            structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in chosen]
            once = jax.linear_transpose(inner, structs)
            back = jax.linear_transpose(lambda ct: once(ct)[0], jax.eval_shape(inner, structs))
            return back(chosen)[0]

        key = ("twice", tree, _keywords(case.static), wrt)
        with errors_told_apart():
            got = [np.asarray(x) for x in case.subject.compiled(key, lambda: twice)(case.leaves)]
        wrong = difference(got, want, case.tolerance())
        if wrong:
            raise Broken(f"got  transposed twice, and f: {wrong}, in {case.named(wrt)}")
    need(ran, "no transpose is declared")


@law("the same laws hold for the derivatives, to the order that was declared", cost=40)
def higher(case: Case) -> None:
    """`jvp` and `adjoint` for ``(x, v) -> J(x) v`` and ``(x, w) -> J(x)ᵀ w``, as functions."""
    case.need_finite()
    tried = [reason for mode in ("jvp", "vjp") for reason in [_higher_in(case, mode)] if reason]
    if len(tried) == 2:
        raise Inapplicable(tried[0])


def _higher_in(case: Case, mode: str) -> str | None:
    """Check one derivative; returns why there was nothing to check."""
    wrt = case.subject.available(mode, case.args, case.static)
    if not any(wrt):
        return "no first derivatives"
    inner = _inner_case(case, mode, wrt)
    done = False
    for check in (jvp, adjoint):
        try:
            check.run(inner)
            done = True
        except Skip:
            continue
        except Broken as error:
            name = f"{case.subject.label}.{mode}"
            detail = {**error.detail, "inner": partial(_inner_case, mode=mode, wrt=wrt), "order": mode}
            raise Broken(f"of {name}, `{check.name}`: {error}", **detail) from None
    return None if done else "no second derivatives are declared"


def _inner_case(case: Case, mode: str, wrt: tuple[bool, ...]) -> Case:
    """The derivative, and arguments for it."""
    seeds = case.directions(wrt) if mode == "jvp" else case.cotangents()
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    others = [x for x, keep in zip(case.leaves, wrt, strict=True) if not keep]
    return case.of(_derivative_subject(case, mode, wrt), (chosen, seeds, others))


def _derivative_subject(case: Case, mode: str, wrt: tuple[bool, ...]) -> Subject:
    """The derivative as a function of (primals, tangents or cotangents, other arguments)."""
    parent, args, static = case.subject, case.args, dict(case.static)

    def make() -> Subject:
        apply = (parent.linearised if mode == "jvp" else parent.transposed)(args, static, wrt)

        def function(chosen: list, seeds: list, others: list) -> list:
            some, rest = iter(chosen), iter(others)
            return apply([next(some) if keep else next(rest) for keep in wrt], seeds)

        names = ("primals", "tangents" if mode == "jvp" else "cotangents", "others")
        return Subject(
            function,
            f"{parent.label}.{mode}",
            kind=lambda position: NONDIFF if position == 2 else GENERAL,
            parameter=lambda position: names[position],
        )

    return parent.kept(("subject", mode, _tree(case), _keywords(case.static), wrt), make)


# Loops -------------------------------------------------------------------------------------------


@law("mapping equals looping, for the function and for its derivatives", cost=30, batch=3)
def vmap(case: Case) -> None:
    """Any ``in_axes``, nested maps, batches of 0, 1, 2 and 3; of f, J v, and Jᵀ w."""
    _ = case.value
    _mapping.check_vmap(case, Broken)


@law("broadcasting equals numpy.vectorize with the same signature", cost=30, batch=3)
def loop_dims(case: Case) -> None:
    """Dimensions in front of the core dimensions broadcast, as in NumPy's gufuncs."""
    apply_only_if(case.subject.signature is not None, "no signature")
    _ = case.value
    _mapping.check_loop_dims(case, Broken)


@law("split over devices equals unsplit", cost=5, batch=3)
def sharded(case: Case) -> None:
    """With the first loop dimension split over the devices, the same comes out."""
    count = len(jax.devices())
    apply_only_if(count > 1, "there is one device (XLA_FLAGS=--xla_force_host_platform_device_count=4)")
    _ = case.value
    _mapping.check_sharded(case, Broken)


# The world around ----------------------------------------------------------------------------------


@law("concurrent calls from several threads give the same bits", cost=4, batch=3)
def threads(case: Case) -> None:
    """Four threads, each with operands of its own, get what each gets alone."""
    rows = _mapping.variants(case, 4)
    subject = case.subject
    try:
        with errors_told_apart():
            wants = [subject.value(row, case.static) for row in rows]
    except UserError as error:
        raise Skip(f"the function raises: {str(error).splitlines()[0]}") from None
    if all(same_bits(wants[0], w) for w in wants):
        raise Skip("all operands give the same result")
    wrong: list[str] = []
    ready = threading.Barrier(len(rows))

    def work(row: tuple, want: Any) -> None:
        ready.wait()
        with jax.enable_x64(True):
            for _ in range(40):
                if wrong:
                    return
                try:
                    got = subject.value(row, case.static)
                except Exception as error:
                    wrong.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
                    return
                if not same_bits(got, want):
                    wrong.append(difference(got, want, 0.0) or "other bits")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [
            threading.Thread(target=work, args=pair) for pair in zip(rows, wants, strict=True)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    if wrong:
        raise Broken(
            f"got  {wrong[0]} beside other threads, and alone: the function keeps something between"
            " calls that threads share (a work array, a cache)"
        )


@law("jax.export round trip", cost=2)
def export(case: Case) -> None:
    """Exported, serialised, read back and called, the program gives the same."""
    binding = case.subject.binding
    assert binding is not None
    name = _identity.importable_name(binding.definition) or binding.definition.given_name
    apply_only_if(name is not None, "not importable by name: define it at the top of a module, or bind(name=)")
    try:
        import flatbuffers  # noqa: F401, PLC0415
    except ImportError:
        raise Inapplicable("jax.export needs the package flatbuffers") from None
    from jaxbind import export_checks  # noqa: PLC0415

    want = case.value
    function = jax.jit(partial(case.subject.function, **case.static))
    with errors_told_apart():
        exported = jax.export.export(function, disabled_checks=export_checks())(*case.args)
        again = jax.export.deserialize(exported.serialize())
        got = numpy_tree(again.call(*case.args))
    wrong = difference(got, want, case.tolerance())
    if wrong:
        raise Broken(f"got  {wrong} after export and before")


_OTHERS = ("float32", "float16", "bfloat16", "complex64", "complex128", "int32", "uint8", "bool")


@law("each dtype that is accepted gives the right answer to its own precision", cost=30)
def dtypes(case: Case) -> None:
    """Against the answer in 64 bits; a dtype that is not accepted raises a clear error."""
    _ = case.value
    _check_precision(case)
    floating = [is_inexact(x) and g is not NONDIFF for x, g in zip(case.leaves, _kinds(case), strict=True)]
    apply_only_if(any(floating), "no floating-point operand")
    for name in _OTHERS:
        dtype = np.dtype(jnp.dtype(name))
        if any(is_complex(x) for x in case.leaves) and dtype.kind != "c":
            continue
        with np.errstate(all="ignore"):
            leaves = [x.astype(dtype) if f else x for x, f in zip(case.leaves, floating, strict=True)]
        args = tree_unflatten(_tree(case), leaves)
        try:
            with errors_told_apart():
                got = case.subject.value(args, case.static)
        except (UserError, BrokenContract, TypeError, ValueError) as error:
            if case.subject.label not in str(error):
                raise Broken(
                    f"got  for {name} an error that does not name the binding: {error}"
                ) from None
            continue
        if dtype.kind in "fc" and dtype.itemsize < 16:
            _compare_precisions(case, leaves, floating, got, name)


def _compare_precisions(
    case: Case, leaves: list[np.ndarray], floating: list[bool], got: Any, name: str
) -> None:
    """Against the same operands in 64 bits, allowing what rounding the operands would do."""
    wide: Any = np.complex128 if name.startswith("complex") else np.float64
    exact = [x.astype(wide) if f else x for x, f in zip(leaves, floating, strict=True)]
    eps = float(jnp.finfo(name).eps)
    half = np.dtype(jnp.dtype(name)).itemsize < 4
    if half and any(magnitude(x) > 30 for x, f in zip(exact, floating, strict=True) if f):
        return  # what is computed on the way may overflow

    def evaluate(leaves: list) -> np.ndarray:
        with errors_told_apart():
            return packed(leaves_of(case.subject.value(tree_unflatten(_tree(case), leaves), case.static)))

    try:
        want = evaluate(exact)
        moved = []
        for _ in range(4):
            shaken = [
                np.asarray(x * (1 + 8 * eps * case.fractions(x).real), x.dtype) if f else x
                for x, f in zip(exact, floating, strict=True)
            ]
            moved.append(np.abs(evaluate(shaken) - want))
    except (UserError, BrokenContract):
        return
    found = packed(leaves_of(got))
    if found.shape != want.shape:
        return  # the declared structure depends on the dtype
    with np.errstate(all="ignore"):
        slack = 16 * np.max(moved, axis=0) + (32 if half else 64) * eps * np.max(
            np.abs(want[np.isfinite(want)]), initial=0.0
        )
        gap = np.abs(found - want)
        wrong = np.isfinite(want) & np.isfinite(slack) & ~(gap <= slack)
        wrong &= (np.abs(want) < 1e30) & (np.abs(want) > (1e-3 if half else 1e-30))
        wrong &= np.isfinite(found)
    if np.any(wrong):
        index = int(np.argmax(np.where(wrong, gap, -1)))
        raise Broken(f"got  {number(found[index])} in {name} and {number(want[index])} in 64 bits")


def _check_precision(case: Case) -> None:
    """Whether 64-bit operands are answered in 64 bits.

    Moved by 1e-10 of itself, an operand moves the result unless the function does not see the
    change, as it does see one of 1e-6.
    """
    wrt = case.subject.differentiable(case.args)
    if not any(wrt) or case.eps > 1e-10 or not case.results:
        return

    def moved(by: float) -> np.ndarray:
        leaves = [
            np.asarray(x * (1 + by * np.sign(case.fractions(x).real)), x.dtype) if keep else x
            for x, keep in zip(case.leaves, wrt, strict=True)
        ]
        with errors_told_apart():
            value = case.subject.value(tree_unflatten(_tree(case), leaves), case.static)
        return np.abs(packed([r for r in leaves_of(value) if is_inexact(r)]) - packed(case.results))

    try:
        with np.errstate(all="ignore"):
            fine = np.max([moved(by) for by in (1e-10, -1e-10, 3e-10, -3e-10)], axis=0)
            coarse = np.min([moved(by) for by in (1e-6, -1e-6, 3e-6, -3e-6)], axis=0)
            size = np.abs(packed(case.results))
            blind = (fine == 0) & (coarse > 1e-7 * size) & (coarse < 1e-3 * size)
    except (UserError, BrokenContract):
        return
    if np.any(blind):
        raise Broken(
            "got  the same bits for operands that differ by 1e-10 of themselves, in 64 bits",
            single=True,
        )


_SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 0.0, 5e-324, -1e-310, 1.0]


@law("NaN, infinities, signed zeros, subnormals and empty arrays agree with a direct call", cost=15)
def special_values(case: Case) -> None:
    """``f(x)`` through JAX has the bits that the function gives when NumPy calls it."""
    apply_only_if(case.subject.binding is not None, "not a binding")
    apply_only_if(callable(case.subject.binding.function), "nothing to call directly")
    floating = [is_inexact(x) and g is not NONDIFF for x, g in zip(case.leaves, _kinds(case), strict=True)]
    apply_only_if(any(floating), "no floating-point operand")
    leaves = [np.array(x) for x in case.leaves]
    for x, f in zip(leaves, floating, strict=True):
        if f and x.size:
            flat = x.reshape(-1)
            for index in case.rng.integers(0, x.size, max(1, x.size // 2)):
                flat[index] = case.rng.choice(_SPECIAL)
    args = tree_unflatten(_tree(case), leaves)
    changed = Case(case.subject, args, case.static)
    try:
        with np.errstate(all="ignore"):
            want = case.subject.direct(args, case.static)
    except Exception as error:
        raise Skip(f"called directly it raises {type(error).__name__}") from None
    try:
        with errors_told_apart():
            got = case.subject.value(args, case.static)
    except UserError as error:
        raise Broken(f"got  {str(error).splitlines()[0]}\nat   {changed.text()}") from None
    with np.errstate(all="ignore"):
        wrong = difference(got, want, 4 * case.eps)
        signs = [
            bool(np.any((x == 0) & (y == 0) & (np.signbit(x.real) != np.signbit(y.real))))
            for x, y in zip(leaves_of(got), leaves_of(want), strict=True)
            if is_inexact(x) and x.shape == y.shape
        ]
    if wrong or any(signs):
        raise Broken(
            f"got  {wrong or 'zeros of other sign'} through JAX and directly, at {changed.text()}"
        )


