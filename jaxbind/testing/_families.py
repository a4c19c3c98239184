"""Which dtypes a function takes, found by calling it with some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis.strategies import SearchStrategy

from jaxbind._roles import NONDIFF
from jaxbind.testing._arrays import samples
from jaxbind.testing._case import Case
from jaxbind.testing._compare import is_complex
from jaxbind.testing._subject import (
    BrokenContract,
    Static,
    Subject,
    UserError,
    errors_told_apart,
)
from jaxbind.testing._violation import Skip

Family = tuple[np.dtype, ...]

_CANDIDATES = [
    ("float64", "float64"),
    ("float64", "int64"),
    ("float32", "float32"),
    ("float32", "int64"),
    ("complex128", "complex128"),
    ("complex128", "int64"),
    ("complex64", "complex64"),
    ("int64", "int64"),
    ("bool", "bool"),
]


def accepted(
    subject: Subject,
    static: Static,
    elements: Sequence[Any],
    asked: Sequence[Any],
    draw: Callable[[Family], list[tuple]],
) -> tuple[Family, ...]:
    """The families of dtypes with which the function is called.

    Args:
      static: static keywords to call it with.
      elements: what was said about the elements of each argument.
      asked: what was said about the dtypes of each argument.
      draw: arguments of a family, to try it.

    Raises:
      ValueError: if it takes none.
    """
    given = [
        dtypes_of(said) or _dtype_of_elements(e) for said, e in zip(asked, elements, strict=True)
    ]
    if all(given):
        return _products([g or () for g in given])
    nondiff = [subject.kind(i) is NONDIFF for i in range(len(given))]
    seen: list[tuple[Family, str]] = []
    kept: Family | None = None
    broken: Family | None = None
    for base, index in _CANDIDATES:
        family = tuple(
            g[0] if g else (np.dtype(index) if n else np.dtype(base))
            for g, n in zip(given, nondiff, strict=True)
        )
        if any(family == f for f, _ in seen) or not _hold_elements(family, elements):
            continue
        verdict = _tried(subject, draw(family), static)
        seen.append((family, verdict))
        if verdict == "broken" and broken is None:
            broken = family
            if subject.binding is not None and _declares_dtypes(subject):
                break
        if verdict == "":
            kept = family
            break
    if kept is None or (broken is not None and _declares_dtypes(subject)):
        kept = broken or kept
    if kept is None and not seen:
        raise ValueError(
            f"jaxbind.testing: elements= and dtypes= of {subject.label} contradict each other: no"
            " dtype that is asked for holds what the strategies draw"
        )
    if kept is None:
        said = seen[-1][1]
        remedy = "Give elements= (the values it takes), dtypes=, static= or inputs="
        if "read-only" in said:
            remedy = (
                "It writes into its operand, which is a read-only view of JAX's memory: work on a"
                " copy (x = x.copy()), or write the result into the parameter `out`"
            )
        raise ValueError(
            f"jaxbind.testing: {subject.label} raises for every input that was drawn; the last"
            f" said: {said}\n{remedy}"
        )
    found = [kept]
    if (
        not any(d.kind == "c" for d in kept)
        and kept[0].itemsize == 8
        and any(d.kind == "f" for d in kept)
    ):
        turned = tuple(
            np.dtype(complex) if d.kind == "f" and not (n or g or _draws_real(e)) else d
            for d, n, g, e in zip(kept, nondiff, given, elements, strict=True)
        )
        if turned != kept and _is_holomorphic(subject, draw(turned), static):
            found.append(turned)
    return tuple(found)


def _hold_elements(family: Family, elements: Sequence[Any]) -> bool:
    """Whether drawn numbers with fractions stay what they are."""
    return all(
        d.kind not in "iub"
        or not isinstance(e, SearchStrategy)
        or np.asarray(samples(e, 1)[0]).dtype.kind not in "fc"
        for d, e in zip(family, elements, strict=True)
    )


def _dtype_of_elements(elements: Any) -> tuple[np.dtype, ...] | None:
    """Integers if a strategy draws integers, and so on."""
    if not isinstance(elements, SearchStrategy):
        return None
    value = np.asarray(samples(elements, 1)[0])
    return (value.dtype,) if value.dtype.kind in "iubc" else None


def _draws_real(elements: Any) -> bool:
    """Whether a strategy draws real numbers: then nobody wants complex ones."""
    return (
        isinstance(elements, SearchStrategy)
        and np.asarray(samples(elements, 1)[0]).dtype.kind == "f"
    )


def _tried(subject: Subject, drawn: list[tuple], static: Static) -> str:
    """Empty if the function takes these dtypes; "broken", or what it raised."""
    said = ""
    with jax.enable_x64(True):
        for args in drawn:
            try:
                with errors_told_apart():
                    subject.value(args, static)
                return ""
            except BrokenContract:
                said = "broken"
            except (UserError, TypeError, ValueError) as error:
                said = said or str(error).splitlines()[0]
    return said


def _is_holomorphic(subject: Subject, drawn: list[tuple], static: Static) -> bool:
    """Whether the function takes complex numbers and is analytic, and so are its rules."""
    sure = False
    with jax.enable_x64(True):
        for args in drawn[1:]:
            case = Case(subject, args, static)
            try:
                with errors_told_apart():
                    case.need_finite()
                    if not all(map(is_complex, case.results)):
                        return False
                    wrt = subject.differentiable(case.args)
                    v = case.directions(wrt)
                    along = case.numerical(wrt, v)
                    turned = case.numerical(wrt, [1j * x for x in v])
                    for mode in ("jvp", "vjp"):
                        if subject.missing(mode, case.args, static, wrt) is None:
                            seeds = v if mode == "jvp" else case.cotangents()
                            (case.pushed if mode == "jvp" else case.pulled)(wrt, seeds)
            except Skip:
                continue
            except Exception:
                return False
            if not (np.all(along.known) and np.all(turned.known)):
                continue
            gap = turned.value.view(complex) - 1j * along.value.view(complex)
            allowed = 1e-6 * np.max(np.abs(along.value), initial=1e-6)
            if np.any(np.abs(gap) > allowed + 20 * np.max(along.error + turned.error)):
                return False
            sure = True
    return sure


def _declares_dtypes(subject: Subject) -> bool:
    return getattr(subject.binding.definition.role.shapes, "dtypes", None) is not None  # pyright: ignore


def dtypes_of(given: Any) -> tuple[np.dtype, ...] | None:
    if given is None:
        return None
    several = given if isinstance(given, (list, tuple, set)) else [given]
    return tuple(np.dtype(jnp.dtype(d)) for d in several)


def _products(choices: Sequence[Sequence[np.dtype]]) -> tuple[Family, ...]:
    """The same choice for all where they have the same ones, all combinations otherwise."""
    if len({tuple(c) for c in choices}) == 1:
        return tuple((d,) * len(choices) for d in choices[0])
    found: list[Family] = [()]
    for choice in choices:
        found = [(*f, d) for f in found for d in choice]
    return tuple(found)
