"""Arrays as one vector of real numbers, and back: complex numbers are pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxbind.testing._compare import is_complex


def packed(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One real vector (of doubles) from arrays; complex numbers become pairs."""
    parts = [
        np.ascontiguousarray(a, complex).reshape(-1).view(float)
        if is_complex(a)
        else np.asarray(a, float).reshape(-1)
        for a in arrays
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def packed_together(values: np.ndarray, like: Sequence[np.ndarray]) -> np.ndarray:
    """The larger value of each complex number's two."""
    found, start = values.copy(), 0
    for a in like:
        count = a.size * (2 if is_complex(a) else 1)
        if is_complex(a):
            pairs = values[start : start + count].reshape(-1, 2)
            found[start : start + count] = np.repeat(np.max(pairs, axis=1), 2)
        start += count
    return found


def unpacked(vector: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    found, start = [], 0
    for a in like:
        count = a.size * (2 if is_complex(a) else 1)
        part = vector[start : start + count]
        start += count
        if is_complex(a):
            part = np.ascontiguousarray(part).view(complex)
        found.append(part.astype(a.dtype).reshape(a.shape))
    return found


def place_of(index: int, like: Sequence[np.ndarray]) -> str:
    """Where an element of `packed` arrays is: ``the imaginary part of element 3 of result 1``."""
    for number, a in enumerate(like):
        width = 2 if is_complex(a) else 1
        if index < a.size * width:
            part = ("the real part of ", "the imaginary part of ")[index % 2] if width == 2 else ""
            element = f"element {index // width}" if a.ndim else ""
            of = f"result {number}" if len(like) > 1 or not element else ""
            if not element and len(like) == 1:
                of = "the result"
            return part + " of ".join(filter(None, [element, of]))
        index -= a.size * width
    raise IndexError(index)


def conjugation(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The signs that conjugation gives to packed arrays: -1 for imaginary parts."""
    return packed([np.full(a.shape, 1 - 1j) if is_complex(a) else np.ones(a.shape) for a in arrays])
