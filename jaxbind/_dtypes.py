"""Which dtypes cross the boundary, and how they are converted for a function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxbind import _jax
from jaxbind._errors import short_repr

#: Codes of XLA's FFI (``XLA_FFI_DataType``) for the dtypes that NumPy views of a buffer can
#: show. Packed sub-byte types are left out: a NumPy array of them has one byte an element.
CODES: dict[int, np.dtype] = {
    code: np.dtype(dtype)
    for code, dtype in {
        1: np.bool_,
        2: np.int8,
        3: np.int16,
        4: np.int32,
        5: np.int64,
        6: np.uint8,
        7: np.uint16,
        8: np.uint32,
        9: np.uint64,
        10: np.float16,
        11: np.float32,
        12: np.float64,
        15: np.complex64,
        16: ml_dtypes.bfloat16,
        18: np.complex128,
        19: ml_dtypes.float8_e5m2,
        20: ml_dtypes.float8_e4m3fn,
        23: ml_dtypes.float8_e4m3b11fnuz,
        24: ml_dtypes.float8_e5m2fnuz,
        25: ml_dtypes.float8_e4m3fnuz,
        28: ml_dtypes.float8_e4m3,
        29: ml_dtypes.float8_e3m4,
        33: ml_dtypes.float8_e8m0fnu,
    }.items()
}

CODE_OF: dict[np.dtype, int] = {dtype: code for code, dtype in CODES.items()}
_ACCEPTED = frozenset(CODES.values())
_COMPLEX_OF = {np.dtype(np.float32): np.complex64, np.dtype(np.float64): np.complex128}


def check_integer(label: str, what: str, value: int) -> None:
    """Refuse a Python integer that JAX's integers cannot hold.

    Raises:
      OverflowError: naming the binding, the operand and the range.
    """
    bits = 64 if _jax.uses_x64() else 32
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        remedy = "" if bits == 64 else ", or set jax_enable_x64"
        raise OverflowError(
            f"{label}: {what} is {short_repr(value)}, which is no {bits}-bit integer. Pass a"
            f" float{remedy}"
        )


def check(label: str, what: str, dtype: Any) -> None:
    """Refuse a dtype that NumPy cannot show as it lies in XLA's memory.

    Raises:
      TypeError: naming the binding, the operand or result, its dtype, and what is accepted.
    """
    if dtype in _ACCEPTED:
        return
    name = "float0" if dtype == jax.dtypes.float0 else getattr(dtype, "name", str(dtype))
    remedy = "convert it with .astype(...) first"
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        remedy = "pass jax.random.key_data(key) instead of a typed key"
    elif dtype == jax.dtypes.float0:
        remedy = "it is the tangent of an integer and carries no data; leave it out"
    elif np.dtype(dtype).newbyteorder("=") in _ACCEPTED:
        name = np.dtype(dtype).str
        remedy = "its bytes are swapped (FITS files give such): x.astype(x.dtype.newbyteorder('='))"
    raise TypeError(
        f"{label}: {what} has dtype {name}, which cannot cross to a"
        " foreign function. Accepted: bool, int8 to int64, uint8 to uint64, float16, bfloat16,"
        " float32, float64, complex64, complex128, and the float8 kinds (sub-byte types are"
        f" packed in XLA's memory). Remedy: {remedy}"
    )


def is_inexact(dtype: Any) -> bool:
    """Whether JAX differentiates values of this dtype."""
    return jnp.issubdtype(dtype, np.inexact)


def is_complex(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.complexfloating)


def canonical(dtype: Any) -> np.dtype:
    """``dtype`` as JAX holds it: 64-bit types become 32-bit ones unless x64 is enabled."""
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return dtype
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def computing(dtype: np.dtype, compute: np.dtype | None) -> np.dtype:
    """The dtype in which a function with ``compute_dtype=compute`` sees values of ``dtype``."""
    if compute is None:
        return dtype
    if is_complex(dtype) and not is_complex(compute):
        return np.dtype(_COMPLEX_OF.get(compute, np.complex128))
    return compute


def with_precision(weak: Any, strong: Any) -> np.dtype:
    """The dtype for a Python number beside operands of the dtypes ``strong``; a real stays real."""
    dtype = np.dtype(jnp.result_type(*strong, weak))
    if is_complex(dtype) and not is_complex(weak.dtype):
        return np.dtype(jnp.finfo(dtype).dtype)
    return dtype
