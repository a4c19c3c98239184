"""`Kernel`: a C, Cython, Numba or Fortran function behind a pointer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbind import _dtypes
from jaxbind._arguments import Declared, dtypes_given, read
from jaxbind._loop import RESULT, Loop, names_of
from jaxbind._pointers import CType, Pointer, Prototype, address_of, pointer_of
from jaxbind._signature import Signature, parse

CONVENTIONS = ("C", "Fortran", "gufunc")


class Kernel:
    """A compiled function behind a C pointer, to be bound with `jaxbind.bind`.

    It is called without Python and without the GIL, once per iteration over the loop dimensions
    (or once for all of them, with the inner loop of a gufunc). Called itself, on NumPy arrays, it
    does the same.

    Args:
      pointer: a ctypes or cffi function, a Numba ``cfunc``, a capsule of a Cython module's
        ``__pyx_capi__``, a ``scipy.LowLevelCallable``, an f2py routine, a capsule, or an address.
        It is kept alive.
      signature: the core dimensions, as gufuncs write them. May be left out where the function
        takes and returns numbers only.
      args: the arguments in C's order: names of inputs, of outputs (``out``, ``out1``, or the
        last ones), of core dimensions (their sizes), of static parameters, ``status``. Each may
        have a type in front: ``"const double *x, double *out, int n, double alpha"``; inputs of
        no core dimensions are passed by value without the star, and need a type here where the
        pointer says none. A result that is returned has no name, and is the last one of the
        signature; ``"double x -> double"`` gives its type. Default: what the pointer's own
        signature says, or pointers to inputs, then to outputs, then the sizes.
      dtypes: of inputs and outputs: one for all, or one for each. Default: from the types in
        ``args``, or of the pointer; otherwise float64.
      convention: ``"C"``: pointers to contiguous arrays, numbers by value. ``"Fortran"``:
        everything by reference, arrays column-major, sizes of type integer (32 bits).
        ``"gufunc"``: ``void loop(char **args, npy_intp const *dimensions, npy_intp const *steps,
        void *data)``.
      static: names in ``args`` that are static parameters, keyword-only for callers. One behind a
        pointer may be a tuple of numbers; one of type ``char`` a letter, and behind a pointer a
        text, which ends with a null.
      inout: names in ``args`` of inputs that the function overwrites with results, the first ones.
        It gets the result's memory, which holds a copy of the input (none is made where JAX no
        longer needs the operand).
      status: how it reports failure, by a number that is not 0: ``"return"``, or the name of an
        integer in ``args`` that it gets by reference.
      data: what the function gets the address of where ``args`` says ``data``, and as the last
        argument of an inner loop: a ctypes object or pointer, a cffi pointer, a NumPy array, all
        of which are kept alive, or an address.
      name: how errors call it.

    Raises:
      TypeError: for a pointer of unknown kind, unsupported C types, or ``args`` that do not fit
        the pointer's own signature.
      ValueError: for a null pointer, or ``args`` that do not fit the gufunc signature.
    """

    def __init__(
        self,
        pointer: Any,
        signature: str | None = None,
        *,
        args: str | None = None,
        dtypes: Any = None,
        convention: str = "C",
        static: str | Sequence[str] = (),
        inout: str | Sequence[str] = (),
        status: str | None = None,
        data: Any = None,
        name: str | None = None,
    ):
        if convention not in CONVENTIONS:
            raise ValueError(
                f"Kernel: convention={convention!r} is not understood; it is 'C', 'Fortran' or"
                " 'gufunc'"
            )
        self.pointer: Pointer = pointer_of(pointer, inner_loop=convention == "gufunc")
        self.given = pointer
        self.__name__ = name or _name_of(pointer)
        self.__module__ = ""
        self.__doc__ = getattr(pointer, "__doc__", None)
        self.convention = convention
        label = f"Kernel {self.__name__}"
        statics, shared = names_of(static), names_of(inout)
        self.status = status
        prototype = self.pointer.prototype
        plain = None
        if signature is None:
            if prototype is None or not _is_of_numbers(prototype, status):
                raise TypeError(
                    f"{label}: it has no signature, and the pointer does not say that it is a"
                    " function of numbers. Give one, such as '(n),(n)->()'"
                )
            plain = _plain(prototype)
            count = len(plain) - len(statics)
            signature = f"{','.join(['()'] * count)}->()"
        self.signature = _parsed(label, signature)
        if "?" in signature or "|1" in signature:
            raise ValueError(
                f"{label}: the signature {signature} has '?' or '|1'; a kernel has not"
            )
        address = self.pointer.data if data is None else address_of(label, data)
        self.data = data  # is kept alive
        if convention == "gufunc":
            if args is not None or statics or shared:
                raise TypeError(
                    f"{label}: an inner loop has arguments of its own; args= is not for it"
                )
            if prototype is not None:
                raise TypeError(
                    f"{label}: it is {prototype} by its own signature, which is no inner loop:"
                    " void (char **, npy_intp *, npy_intp *, void *)"
                )
            wanted = len(self.signature.inputs) + len(self.signature.outputs)
            found = dtypes_given(label, dtypes, wanted) or (np.dtype(float),) * wanted
            self.names = tuple(f"x{i + 1}" for i in range(len(self.signature.inputs)))
            self.statics: tuple[str, ...] = ()
            self.loop = Loop(
                self.pointer.address,
                address,
                self,
                self.signature,
                tuple(found),
                may_raise=self.pointer.may_raise,
            )
        else:
            declared = Declared(
                label=label,
                signature=self.signature,
                prototype=prototype,
                args=args,
                dtypes=dtypes,
                fortran=convention == "Fortran",
                statics=statics,
                inout=shared,
                status=status,
            )
            made = read(declared)
            if made.returns == RESULT and hasattr(pointer, "_cpointer"):
                raise TypeError(
                    f"{label}: f2py's pointer to a Fortran function is a subroutine, which writes"
                    " the result into its first argument. Name that in args=: 'out, a, b', say"
                )
            self.names, self.statics = made.inputs, statics
            self.loop = Loop(
                self.pointer.address,
                address,
                self,
                self.signature,
                made.dtypes,
                made.slots,
                made.returns,
                made.source,
                fortran=declared.fortran,
                may_raise=self.pointer.may_raise,
                status=made.status,
            )
        for dtype in self.loop.dtypes:
            _dtypes.check(label, "an argument", dtype)
        parameters = [
            inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in self.names
        ]
        parameters += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in self.statics]
        self.__signature__ = inspect.Signature(parameters)

    def loop_for(self, dtypes: Sequence[np.dtype]) -> Loop:
        del dtypes  # checked while tracing
        return self.loop

    def loop_of(self, resolved: Sequence[np.dtype]) -> Loop | None:
        return self.loop if list(resolved) == list(self.loop.dtypes) else None

    def __call__(self, *arrays: Any, **static: Any) -> Any:
        """Call it on NumPy arrays."""
        bound = self.__signature__.bind(*arrays, **static)
        given = [bound.arguments[n] for n in self.names]
        chosen = {n: bound.arguments[n] for n in self.statics}
        return self.loop.on_arrays(self.__name__, self.names, given, **chosen)

    def __repr__(self) -> str:
        return f"<jaxbind.Kernel {self.__name__} {self.signature}>"


def _name_of(pointer: Any) -> str:
    name = getattr(pointer, "__name__", None)
    return name if isinstance(name, str) and name.isidentifier() else "kernel"


def _parsed(label: str, signature: str) -> Signature:
    try:
        return parse(signature)
    except ValueError as error:
        computed = (
            parse(signature, computed=True).computed() if "only in an out" in str(error) else ()
        )
        if not computed:
            raise
        raise ValueError(
            f"{label}: core dimension {min(computed)} of the signature {signature} stands only in"
            " an output, so its size is unknown, and a kernel gets its results' memory. Bind a"
            " Python function with out= that makes the result and calls the C function"
        ) from None


def _is_of_numbers(prototype: Prototype, status: str | None) -> bool:
    """Whether it takes numbers only, and returns one or writes it to its last argument."""
    arguments, result = prototype.arguments, prototype.result
    writes = bool(arguments) and arguments[-1].pointer
    returns = result.dtype is not None and status != "return"
    return not (any(a.pointer for a in arguments[:-1]) or result.pointer or (writes and returns))


def _plain(prototype: Prototype) -> list[CType]:
    """The numbers among the arguments of a function of numbers."""
    return [a for a in prototype.arguments if not a.pointer and not a.skipped]


def check_operand(label: str, name: str, given: Any, known: np.dtype) -> None:
    """Refuse an operand whose dtype a kernel's cannot hold.

    Raises:
      TypeError: naming it, and the remedy.
    """
    if given == known:
        return
    wider = jnp.issubdtype(given, np.inexact) or jnp.issubdtype(known, np.inexact)
    fits = np.can_cast(given, known, "safe") if given.kind != "V" else known.kind in "fc"
    if not fits and wider and given.kind in "iub" and known.kind in "fc":
        fits = True  # as NumPy's ufuncs take integers
    if not fits:
        remedy = f"Convert it with .astype(jnp.{known.name})"
        if _dtypes.is_complex(given) and not _dtypes.is_complex(known):
            remedy = "Give its .real part, if that is meant"
        raise TypeError(
            f"{label}: {name} is {given.name}, but the kernel takes {known.name}, which cannot"
            f" hold that exactly. {remedy}"
        )
