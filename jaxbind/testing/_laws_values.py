"""Laws about the values that come in, and about other threads and processes."""

from __future__ import annotations

import sys
import threading
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbind import _identity
from jaxbind.testing._case import Case, raises
from jaxbind.testing._compare import (
    difference,
    eps_of,
    is_complex,
    is_inexact,
    kind_of,
    leaves_of,
    magnitude,
    number,
    numpy_tree,
    same_bits,
)
from jaxbind.testing._law import Broken, law
from jaxbind.testing._packing import packed
from jaxbind.testing._rounding import blind, scatter
from jaxbind.testing._subject import (
    BrokenContract,
    UserError,
    apply_only_if,
    errors_told_apart,
    skipping_where_it_raises,
)
from jaxbind.testing._violation import Inapplicable, Skip


@law("concurrent calls from several threads give the same bits", cost=4, batch=3)
def threads(case: Case) -> None:
    """Four threads, each with operands of its own, get what each gets alone."""
    rows = case.variants(4)
    subject = case.subject
    with skipping_where_it_raises():
        wants = [subject.value(row, case.static) for row in rows]
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
    apply_only_if(
        name is not None, "not importable by name: define it at the top of a module, or bind(name=)"
    )
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise Inapplicable("jax.export needs the package flatbuffers") from None
    from jaxbind import export_checks

    want = case.value
    function = jax.jit(partial(case.subject.function, **case.static))
    with errors_told_apart():
        exported = jax.export.export(function, disabled_checks=export_checks())(*case.args)
        again = jax.export.deserialize(exported.serialize())
        got = numpy_tree(again.call(*case.args))
    wrong = difference(got, want, case.tolerance(), atol=case.slack)
    if wrong:
        raise Broken(f"got  {wrong} after export and before")


_OTHERS = ("float32", "float16", "bfloat16", "complex64", "complex128", "int32", "uint8", "bool")

#: what is tried with ``jax_enable_x64=False`` as well
_IN_32_BITS = ("float32", "complex64")


@law("each dtype that is accepted gives the right answer to its own precision", cost=30)
def dtypes(case: Case) -> None:
    """Against the answer in 64 bits; a dtype that is not accepted raises a clear error.

    Integers and booleans are only tried: what they should give (they overflow, and divide
    otherwise) is not known from floating-point numbers.
    """
    _ = case.value
    found: list[bool] = []
    if not raises(lambda: found.append(blind(case))) and any(found):
        raise Broken(
            "got  the same bits for operands that differ by 1e-10 of themselves, in 64 bits",
            single=True,
        )
    floating = case.floating
    apply_only_if(any(floating), "no floating-point operand")
    settings = [(name, True) for name in _OTHERS]
    if case.narrow:
        settings += [(name, False) for name in _IN_32_BITS]
    for name, x64 in settings:
        dtype = np.dtype(jnp.dtype(name))
        if any(is_complex(x) for x in case.leaves) and dtype.kind != "c":
            continue
        with np.errstate(all="ignore"):
            given = case.leaves if x64 else [_held_in_32_bits(x) for x in case.leaves]
            same = [np.array_equal(x, y) for x, y in zip(given, case.leaves, strict=True)]
            if not all(s or is_inexact(x) for s, x in zip(same, given, strict=True)):
                continue  # integers that are others there
            leaves = [x.astype(dtype) if f else x for x, f in zip(given, floating, strict=True)]
        args = case.rebuilt(leaves)
        where = name if x64 else f"{name} (jax_enable_x64=False)"
        try:
            with errors_told_apart(), jax.enable_x64(x64):
                got = case.subject.value(args, case.static)
        except (UserError, BrokenContract, TypeError, ValueError) as error:
            if case.subject.label not in str(error):
                raise Broken(
                    f"got  for {where} an error that does not name the binding: {error}"
                ) from None
            continue
        if kind_of(dtype) in case.kinds and dtype.itemsize < 16:
            _compare_precisions(case, leaves, floating, got, name, where)


def _held_in_32_bits(x: np.ndarray) -> np.ndarray:
    """What 32-bit JAX makes of it, in the dtype that it has."""
    narrow = {"f8": "f4", "c16": "c8", "i8": "i4", "u8": "u4"}.get(x.dtype.str[1:], x.dtype)
    return x.astype(narrow).astype(x.dtype)


def _compare_precisions(
    case: Case,
    leaves: list[np.ndarray],
    floating: tuple[bool, ...],
    got: Any,
    name: str,
    where: str,
) -> None:
    """Against the same operands in 64 bits, allowing what rounding the operands would do."""
    wide: Any = np.complex128 if name.startswith("complex") else np.float64
    exact = [x.astype(wide) if f else x for x, f in zip(leaves, floating, strict=True)]
    eps = eps_of(name)
    half = eps > 1e-5
    shake = min(8 * eps, 2.0**-6)  # with more, nothing in bfloat16 would be wrong
    if half and any(magnitude(x) > 30 for x, f in zip(exact, floating, strict=True) if f):
        return  # what is computed on the way may overflow

    def evaluate(leaves: list) -> np.ndarray:
        with errors_told_apart():
            return packed(leaves_of(case.value_at(leaves)))

    try:
        want = evaluate(exact)
        moved = []
        for _ in range(4):
            shaken = [
                np.asarray(x * (1 + shake * np.real(case.fractions(x))), x.dtype) if f else x
                for x, f in zip(exact, floating, strict=True)
            ]
            moved.append(np.abs(evaluate(shaken) - want))
    except (UserError, BrokenContract):
        return
    found = packed(leaves_of(got))
    if found.shape != want.shape:
        return  # the declared structure depends on the dtype
    with np.errstate(all="ignore"):
        relative = max(min((32 if half else 64) * eps, 2.0**-4), case.rtol or 0.0)
        slack = 16 * np.max(moved, axis=0) + case.slack
        slack += relative * np.max(np.abs(want[np.isfinite(want)]), initial=0.0)
        gap = np.abs(found - want)
        wrong = np.isfinite(want) & np.isfinite(slack) & ~(gap <= slack)
        wrong &= (np.abs(want) < 1e30) & (np.abs(want) > (1e-3 if half else 1e-30))
        if half or any(magnitude(x) > 2 for x, f in zip(exact, floating, strict=True) if f):
            wrong &= np.isfinite(found)  # what is computed on the way may overflow
    if np.any(wrong):  # or else this precision shows what cancels on the way
        double = eps_of(np.float64)
        wrong &= gap > slack + 16 * scatter(case, evaluate, exact, double) * (eps / double)
    if np.any(wrong):
        index = int(np.argmax(np.where(wrong, gap, -1)))
        raise Broken(f"got  {number(found[index])} in {where} and {number(want[index])} in 64 bits")


_SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 0.0, 5e-324, -1e-310, 1.0]


@law("NaN, infinities, signed zeros, subnormals and empty arrays agree with a direct call", cost=15)
def special_values(case: Case) -> None:
    """``f(x)`` through JAX is what the function gives when NumPy calls it."""
    binding = case.subject.binding
    direct = binding is case.subject.function and callable(getattr(binding, "function", None))
    apply_only_if(direct, "there is no function over NumPy arrays to call directly")
    floating = case.floating
    apply_only_if(any(floating), "no floating-point operand")
    leaves = [np.array(x, order="C") for x in case.leaves]
    for x, f in zip(leaves, floating, strict=True):
        if f and x.size:
            flat = x.reshape(-1)  # a view
            for index in case.rng.integers(0, x.size, max(1, x.size // 2)):
                flat[index] = case.rng.choice(_SPECIAL)
    args = case.rebuilt(leaves)
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
        wrong = difference(got, want, case.tolerance(4), atol=case.slack)
        signs = [
            bool(np.any((x == 0) & (y == 0) & (np.signbit(np.real(x)) != np.signbit(np.real(y)))))
            for x, y in zip(leaves_of(got), leaves_of(want), strict=True)
            if is_inexact(x) and x.shape == y.shape
        ]
    if wrong or any(signs):
        raise Broken(
            f"got  {wrong or 'zeros of other sign'} through JAX and directly, at {changed.text()}"
        )
