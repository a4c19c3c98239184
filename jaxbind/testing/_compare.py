"""Comparing results: bits, numbers to a tolerance, and how a difference is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

#: rounding errors of a few operations, in units of the dtype's epsilon
ROUNDING = 64.0


def is_inexact(x: Any) -> bool:
    kind = x.dtype.kind
    return kind in "fc" or (kind == "V" and bool(jnp.issubdtype(x.dtype, np.inexact)))


def is_complex(x: Any) -> bool:
    return x.dtype.kind == "c"


def wide(x: np.ndarray) -> np.ndarray:
    """In 64 bits."""
    return x.astype(complex if is_complex(x) else float)


def kind_of(dtype: Any) -> str:
    """As ``np.dtype.kind``; ``"f"`` for JAX's own kinds of floating-point numbers, too."""
    return "f" if jnp.issubdtype(dtype, np.floating) else np.dtype(dtype).kind


def numpy_tree(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def leaves_of(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def copied(x: Any) -> np.ndarray:
    """A copy that is laid out in memory as the original is (reversed, with gaps)."""
    x = np.asarray(x)
    copy = np.array(x)
    if copy.strides == x.strides or 0 in x.strides or not x.size:
        return copy
    ends = [stride * (count - 1) for count, stride in zip(x.shape, x.strides, strict=True)]
    start = -sum(min(end, 0) for end in ends)
    total = start + sum(max(end, 0) for end in ends) + x.itemsize
    if total > 4 * x.nbytes:  # a part of something large
        return copy
    copy = np.ndarray(x.shape, x.dtype, np.zeros(total, np.uint8), start, x.strides)
    copy[...] = x
    return copy


def eps_of(dtype: Any) -> float:
    """The machine epsilon of a floating-point dtype, of JAX's own as well (bfloat16)."""
    return float(jnp.finfo(dtype).eps)


def tiny_of(dtype: Any) -> float:
    """Its smallest normal number."""
    return float(jnp.finfo(dtype).tiny)


def epsilon(arrays: Sequence[Any]) -> float:
    """The coarsest machine epsilon among floating-point arrays."""
    found = [eps_of(jnp.result_type(a)) for a in arrays if is_inexact(a)]
    return max(found, default=float(np.finfo(float).eps))


def same_kind(a: Any, b: Any) -> str | None:
    """The first difference in structure, shape or dtype, as text."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return f"structures {jax.tree.structure(a)} and {jax.tree.structure(b)}"
    for x, y in zip(leaves_of(a), leaves_of(b), strict=True):
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"{x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}"
    return None


def same_bits(a: Any, b: Any) -> bool:
    """Equal to the last bit, but that every NaN is one value."""
    if same_kind(a, b):
        return False
    return all(
        bool(np.all(bitwise_equal(x, y))) for x, y in zip(leaves_of(a), leaves_of(b), strict=True)
    )


def bitwise_equal(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Elementwise: the same bits, or both NaN."""
    shape = (*x.shape, x.dtype.itemsize)
    bits = [np.ascontiguousarray(a).reshape(-1).view(np.uint8).reshape(shape) for a in (x, y)]
    same = np.all(bits[0] == bits[1], axis=-1)
    if is_inexact(x):
        same |= (x != x) & (y != y)
    return same


def magnitude(tree: Any) -> float:
    """The largest finite absolute value, 0 if there is none."""
    largest = 0.0
    for leaf in leaves_of(tree):
        values = np.abs(wide(leaf))
        finite = values[np.isfinite(values)]
        largest = max(largest, float(np.max(finite, initial=0.0)))
    return largest


def difference(
    a: Any,
    b: Any,
    rtol: float,
    slack: Any = None,
    scale: float | None = None,
    atol: float = 0.0,
) -> str | None:
    """Where two results differ by more than rounding, as text; ``None`` if nowhere.

    Args:
      rtol: tolerance relative to the largest element of each leaf of ``b``, or to ``scale``.
      slack: absolute tolerance per element, in the structure of the results.
      atol: absolute tolerance for all.
    """
    kind = same_kind(a, b)
    if kind:
        return kind
    slacks = [0.0] * len(leaves_of(a)) if slack is None else leaves_of(slack)
    for index, (x, y, s) in enumerate(zip(leaves_of(a), leaves_of(b), slacks, strict=True)):
        if x.size == 0:
            continue
        with np.errstate(all="ignore"):
            u, v = wide(x), y.astype(complex if is_complex(x) else float)
            bound = rtol * (max(magnitude(x), magnitude(y)) if scale is None else scale) + s
            bound = bound + atol
            gap = np.abs(u - v)
            fine = (u == v) | ((u != u) & (v != v)) | (gap <= bound)
        if not np.all(fine):
            gap = np.where(fine, -1.0, np.where(np.isfinite(gap), gap, np.inf))
            where = np.unravel_index(int(np.argmax(gap)), gap.shape)
            named = f" (result {index})" if len(slacks) > 1 else ""
            place = f" at {list(map(int, where))}" if where else ""
            texts = [number(value[where]) for value in (x, y)]
            if texts[0] == texts[1]:  # show the digits in which they differ
                texts = [number(value[where], 17) for value in (x, y)]
            return f"{texts[0]} and {texts[1]}{place}{named}"
    return None


def number(x: Any, digits: int = 10) -> str:
    """A short, readable number."""
    value = np.asarray(x)[()]
    if is_complex(value):
        value = complex(value)
        if value.real == 0 and value.imag == 0:
            return "0"
        sign = "-" if np.signbit(value.imag) else "+"
        return f"{number(value.real, digits)}{sign}{number(abs(value.imag), digits)}j"
    if is_inexact(value):
        return f"{float(value):.{digits}g}"
    return str(value)


def array_text(x: Any) -> str:
    array = np.asarray(x)
    with np.printoptions(precision=17, floatmode="unique", threshold=60, edgeitems=2):
        text = repr(array) if array.dtype.isbuiltin == 1 else f"array({array}, dtype={array.dtype})"
    return " ".join(text.split())
