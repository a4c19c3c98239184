"""The columns: ways to call ``x * x`` on doubles from JAX.

Each is a `Column` of JAX functions of one array. ``nothing`` leaves its result alone (what a
call costs by itself) and is ``None`` where that makes no sense; ``fresh(i)`` is the square as a
call that no program has seen yet, for the costs of tracing and lowering.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Function = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Column:
    """One way to call, as JAX functions of one array."""

    square: Function
    nothing: Function | None
    fresh: Callable[[int], Function]


def native() -> Column:
    """JAX by itself. All its multiplications are the same to JAX: none is ever distinct."""
    return Column(lambda x: x * x, None, lambda i: lambda x: x * x)


def pure_callback() -> Column:
    """A Python function through `jax.pure_callback`, one call per element of a batch."""

    def callback(function: Callable[..., Any]) -> Function:
        return lambda x: jax.pure_callback(
            function, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential"
        )

    def square(x: Any) -> Any:
        return np.multiply(x, x)

    return Column(
        callback(square), callback(lambda x: x), lambda i: callback(lambda x: np.multiply(x, x))
    )


HANDLERS = r"""
#include <stdint.h>
#include "xla/ffi/api/c_api.h"

/* XLA asks once, when a handler is registered, for which version it was made. */
static int is_metadata_call(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Metadata_Extension *extension = (XLA_FFI_Metadata_Extension *)frame->extension_start;
  if (!extension || extension->extension_base.type != XLA_FFI_Extension_Metadata) return 0;
  extension->metadata->api_version = frame->api->api_version;
  return 1;
}

XLA_FFI_Error *nothing(XLA_FFI_CallFrame *frame) {
  is_metadata_call(frame);
  return 0;
}

XLA_FFI_Error *square(XLA_FFI_CallFrame *frame) {
  if (is_metadata_call(frame)) return 0;
  XLA_FFI_Buffer *x = (XLA_FFI_Buffer *)frame->args.args[0];
  XLA_FFI_Buffer *y = (XLA_FFI_Buffer *)frame->rets.rets[0];
  const double *in = (const double *)x->data;
  double *out = (double *)y->data;
  int64_t count = 1;
  for (int64_t i = 0; i < x->rank; ++i) count *= x->dims[i];
  for (int64_t i = 0; i < count; ++i) out[i] = in[i] * in[i];
  return 0;
}
"""


def handlers() -> ctypes.CDLL:
    """Compile and load `HANDLERS` with the header of the installed jaxlib."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "handlers.c"), Path(folder, "handlers.so")
        source.write_text(HANDLERS, encoding="utf-8")
        compiler = os.environ.get("CC", "cc")
        options = ["-O3", "-shared", "-fPIC", f"-I{jax.ffi.include_dir()}"]
        subprocess.run([compiler, *options, source, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def ffi_call() -> Column:
    """A handler in C through `jax.ffi.ffi_call`, one call per batch."""
    library = handlers()
    for name in ("square", "nothing"):
        capsule = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(f"benchmark_{name}", capsule, platform="cpu")

    def foreign(name: str, **attributes: Any) -> Function:
        return lambda x: jax.ffi.ffi_call(
            f"benchmark_{name}",
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            vmap_method="broadcast_all",
        )(x, **attributes)

    # an attribute, which the handler ignores, makes calls distinct
    return Column(
        foreign("square"), foreign("nothing"), lambda i: foreign("square", number=np.int64(i))
    )


def published() -> Column:
    """A function written in place, through the published JAXbind 1.3.1."""
    import jaxbind

    if hasattr(jaxbind, "bind"):
        raise ImportError("this interpreter has another jaxbind than the published 1.3.1")

    def square(out: Any, args: Any, kwargs_dump: Any) -> None:
        np.multiply(args[0], args[0], out=out[0])

    def nothing(out: Any, args: Any, kwargs_dump: Any) -> None:
        pass

    def shape(x: Any, **kwargs: Any) -> tuple[Any, ...]:
        return ((x.shape, x.dtype),)

    def linear(function: Callable[..., None]) -> Function:
        bound = jaxbind.get_linear_call(function, function, shape, shape)
        return lambda x: bound(x)[0]

    return Column(
        linear(square),
        linear(nothing),
        lambda i: linear(lambda out, args, kwargs_dump: square(out, args, kwargs_dump)),
    )


def our_package() -> Any:
    """Import this package: the installed one or, failing that, this checkout."""
    if importlib.util.find_spec("jaxbind") is None:
        sys.path.append(str(Path(__file__).resolve().parent.parent))
    import jaxbind

    if not hasattr(jaxbind, "bind"):
        raise ImportError("this interpreter has the published jaxbind in place of this package")
    return jaxbind


def in_place(**options: Any) -> Column:
    """A function with an ``out`` parameter, through this package."""
    jaxbind = our_package()

    def bound(function: Callable[..., None]) -> Function:
        return jaxbind.bind(out=lambda x: x, **options)(function)

    def square(x: np.ndarray, *, out: np.ndarray) -> None:
        np.multiply(x, x, out=out)

    def nothing(x: np.ndarray, *, out: np.ndarray) -> None:
        pass

    return Column(
        bound(square),
        bound(nothing),
        lambda i: bound(lambda x, *, out: square(x, out=out)),
    )


def returning() -> Column:
    """A function that returns a new array, through this package."""
    bound = our_package().bind("(n)->(n)")
    return Column(
        bound(lambda x: np.multiply(x, x)), None, lambda i: bound(lambda x: np.multiply(x, x))
    )


COLUMNS: dict[str, Callable[[], Column]] = {
    "native": native,
    "pure_callback": pure_callback,
    "ffi_call": ffi_call,
    "jaxbind 1.3": published,
    "jaxbind": in_place,
    "jaxbind returning": returning,
    "jaxbind vectorized": lambda: in_place(vectorized=True),
}


def make(name: str) -> Column:
    """The column, after it has shown that it computes squares.

    Raises:
      ArithmeticError: if it does not.
    """
    column = COLUMNS[name]()
    x = np.linspace(-3.0, 5.0, 24).reshape(3, 8)
    ways: dict[str, Callable[[], jax.Array]] = {
        "eager": lambda: column.square(jnp.asarray(x[1])),
        "jit": lambda: jax.jit(column.square)(x[1]),
        "vmap": lambda: jax.jit(jax.vmap(column.square))(x),
        "scan": lambda: jax.lax.scan(lambda c, _: (column.square(c), None), x[1], None, 1)[0],
        "fresh": lambda: jax.jit(column.fresh(0))(x[1]),
    }
    for way, run in ways.items():
        wanted = x**2 if way == "vmap" else x[1] ** 2
        if not np.array_equal(run(), wanted):
            raise ArithmeticError(f"{name}: wrong result ({way})")
    return column
