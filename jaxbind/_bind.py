"""`bind`: the one verb."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbind import _dtypes, _identity, _signature
from jaxbind._binding import Binding
from jaxbind._definition import Definition
from jaxbind._errors import short_repr
from jaxbind._handler import Handler
from jaxbind._kernels import Kernel
from jaxbind._options import Options
from jaxbind._parameters import Parameters, position, positions
from jaxbind._pointers import is_c_function
from jaxbind._roles import Function
from jaxbind._shapes import FromKernel, FromUfunc, declare
from jaxbind._ufuncs import ufunc_of


def bind(
    function: Any = None,
    signature: Any = None,
    /,
    *,
    out: Any = None,
    dtype: Any = None,
    linear: bool | str | Sequence[str | int] = False,
    multilinear: str | Sequence[str | int] = (),
    nondiff: str | int | Sequence[str | int] = (),
    vectorized: bool = False,
    threads: int = 1,
    compute_dtype: Any = None,
    order: Literal["C", "F"] = "C",
    aliases: Mapping[Any, int] | None = None,
    effect: Literal["unordered", "ordered"] | None = None,
    allow_jax: bool = False,
    name: str | None = None,
) -> Any:
    """Bind a foreign function to JAX.

    As a function, ``f = bind(function, "(n),(n)->()")``; as a decorator, ``@bind("(n)->()")`` or
    ``@bind(out=...)``. Positional parameters of the function are operands: arrays, or pytrees of
    them. Keyword-only parameters are static: any hashable value, handed over as it is. A
    parameter called ``out`` receives the results' memory to write into; otherwise the
    function returns its results. It sees NumPy arrays (read-only for operands), always.

    Args:
      function: any callable on NumPy arrays; a ufunc or gufunc (of NumPy, SciPy, Numba, Cython),
        whose own loops are then called without Python; a `jaxbind.Kernel`; a `jaxbind.Handler`.
      signature: a gufunc signature such as ``"(m,n),(n)->(m)"``; dimensions in front of those
        it names are looped over and broadcast, as in NumPy.
      out: instead of a signature: a ``jax.ShapeDtypeStruct`` or pytree of them; a function of
        such structs (and of the static keywords it names) that returns them; or ``"infer"``:
        run the function once on zeros while tracing. ``()``, or nothing at all, where there is an
        ``effect`` and no result.
      dtype: with a signature, the dtype of the result (or a tuple, one per result); by default
        ``jnp.result_type`` of the differentiable operands.
      linear: ``True``, or the names of the arguments in which the function is jointly linear.
      multilinear: names of arguments in each of which it is linear separately.
      nondiff: names of arguments without a derivative (integers have none by themselves).
      vectorized: the function takes leading loop dimensions itself, where operands may have
        size 1 instead of the full size; otherwise it is called once per element of them. So are
        its rules. Of a ufunc or a `Kernel`, which are looped over without Python, it says this of
        the rules only; those of elementwise ones take whole arrays in any case.
      threads: loop over that many threads (0: as many as the runtime has). For compiled functions,
        and for Python functions that release the GIL.
      compute_dtype: the only dtype that the function knows: operands (except ``nondiff``) are
        converted to it on the way in and results on the way out, also where JAX runs in 32
        bits. Complex operands get the complex type of that precision.
      order: ``"F"``: the function sees Fortran-ordered arrays.
      aliases: which argument (name or position) may share memory with which result: then no copy is
        made where JAX needs the operand no longer. The function must work in place.
      effect: ``"unordered"``: each execution calls the function exactly once, and no call is
        removed or merged with another; ``"ordered"``: in the order of the program as well, also
        inside ``scan``, and among JAX's own ordered host calls. As with these, ``vmap`` of a
        ``cond`` or ``while_loop`` around it may be refused. Such functions are differentiated by
        rules only. Default: the function is pure.
      allow_jax: the function calls JAX itself. Without it that raises, since the runtime could
        wait for itself; with it JAX waits for each execution, programs run on one device, and
        cannot be exported.
      name: a name for the binding in compiled programs that is the same in every process, for
        functions that are not importable; by default module and qualified name.

    Returns:
      A `Binding`; without ``function``, a decorator.

    Raises:
      TypeError, ValueError: naming the option that does not fit and what to write instead.
    """
    if isinstance(function, str) and signature is not None:
        raise TypeError(f"bind({function!r}, {signature!r}): a function is missing")
    decorates = function is None or isinstance(function, str)
    given_signature = function or signature if decorates else signature

    def make(function: Any) -> Binding:
        declared = given_signature is not None or out is not None
        if is_c_function(function) and not (declared and callable(function)):
            raise TypeError(
                f"bind({short_repr(function)}): a C function is bound as"
                " bind(jaxbind.Kernel(function, signature))"
            )
        label = _label(function, name)
        if order not in ("C", "F"):
            raise ValueError(f"{label}: order={order!r} is not understood; it is 'C' or 'F'")
        options = Options(
            vectorized=_flag(label, "vectorized", vectorized),
            rules_vectorized=bool(vectorized),
            order=order,
            compute_dtype=None if compute_dtype is None else _compute(label, compute_dtype),
            threads=_threads(label, threads),
            allow_jax=_flag(label, "allow_jax", allow_jax),
            effect=_effect(label, effect),
        )
        what = _called(label, function, given_signature, out, dtype, options)
        parameters = Parameters.of(what.function)
        _check_count(label, parameters, what.shapes)
        role = Function(
            what.shapes,
            linear if isinstance(linear, bool) else positions(label, "linear=", parameters, linear),
            positions(label, "multilinear=", parameters, multilinear),
            positions(label, "nondiff=", parameters, nondiff),
            options.compute_dtype,
        )
        _check_linearity(label, parameters, role)
        signature_inputs = getattr(getattr(what.shapes, "signature", None), "inputs", ())
        definition = Definition(
            what.function,
            role,
            calling=replace(parameters, fill=len(signature_inputs)),
            label=label,
            module=getattr(what.function, "__module__", None) or "",
            qualname=getattr(what.function, "__qualname__", None) or "",
            home=_calling_module(),
            given_name=name,
            options=replace(
                what.options,
                aliases=_aliases(label, parameters, what.options.compiled, aliases),
            ),
        )
        _identity.announce(definition)
        return Binding(definition)

    return make if decorates else make(function)


class _Called(NamedTuple):
    """What is called for a function, what is known of its results, and how it is called."""

    function: Any
    shapes: Any
    options: Options


def _called(
    label: str, function: Any, signature: Any, out: Any, dtype: Any, options: Options
) -> _Called:
    compute = options.compute_dtype
    if isinstance(function, Kernel):
        _refuse_what_a_kernel_has(label, signature, out, dtype, options.order)
        shapes: Any = FromKernel.of(label, function, compute)
        memory = "F" if function.loop.fortran else "C"
        return _Called(function, shapes, _of_loops(options, shapes, function, order=memory))
    if ufunc_of(function) is not None and signature is None and out is None:
        shapes = FromUfunc.of(label, function, dtype, compute)
        if shapes.loops.of_objects:
            return _Called(shapes.loops.over_arrays(), shapes, _of_loops(options, shapes, None))
        return _Called(function, shapes, _of_loops(options, shapes, shapes.loops))
    parsed = None if signature is None else _parsed(label, signature)
    shapes = declare(label, parsed, out, dtype, compute, options.effect)
    if not isinstance(function, Handler):
        return _Called(function, shapes, options)
    if compute is not None:
        raise TypeError(f"{label}: a Handler gets buffers as they are; leave out compute_dtype=")
    return _Called(function, shapes, replace(options, compiled=function))


def _of_loops(options: Options, shapes: Any, compiled: Any, **more: Any) -> Options:
    """Of what loops over dimensions itself: ``vectorized`` says this of its rules."""
    whole = options.vectorized or shapes.signature.elementwise
    return replace(options, vectorized=True, rules_vectorized=whole, compiled=compiled, **more)


def _refuse_what_a_kernel_has(label: str, signature: Any, out: Any, dtype: Any, order: str) -> None:
    """Options that say of a function what a kernel says of itself."""
    remedies = {
        "a signature": (signature is not None, "give it to Kernel(pointer, signature)"),
        "out=": (out is not None, "its signature gives the shapes"),
        "dtype=": (dtype is not None, "give it to Kernel(pointer, dtypes=...)"),
        "order=": (order != "C", "Kernel(pointer, convention='Fortran') takes arrays so"),
    }
    for option, (given, remedy) in remedies.items():
        if given:
            raise TypeError(f"{label}: {option} belongs to the Kernel itself; {remedy}")


def _calling_module() -> str:
    """The name of the module that calls `bind`."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return "" if frame is None else frame.f_globals.get("__name__") or ""


def _flag(label: str, option: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{label}: {option}={short_repr(value)} is not understood; it is a bool")
    return bool(value)


def _threads(label: str, threads: Any) -> int:
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or threads < 0:
        raise ValueError(
            f"{label}: threads={threads!r} is not understood; it is a number, 0 for as many as the"
            " runtime has"
        )
    return int(threads)


def _effect(label: str, effect: Any) -> Any:
    if effect not in (None, "unordered", "ordered"):
        raise ValueError(
            f"{label}: effect={effect!r} is not understood; it is None, 'unordered' or 'ordered'"
        )
    return effect


def _aliases(
    label: str, parameters: Parameters, compiled: Any, aliases: Mapping[Any, int] | None
) -> tuple[tuple[int, int], ...]:
    """Pairs of an argument's and a result's position."""
    found = {}
    if isinstance(compiled, Kernel):
        found = {i: o for o, i in enumerate(compiled.loop.source) if i >= 0}
    if aliases is None:
        return tuple(found.items())
    if not isinstance(aliases, Mapping):
        raise TypeError(f"{label}: aliases={aliases!r} must be a mapping, {{argument: result}}")
    for argument, result in aliases.items():
        if isinstance(result, bool) or not isinstance(result, int) or result < 0:
            raise TypeError(
                f"{label}: aliases= maps {argument!r} to {result!r}, which is no result"
            )
        found[position(label, "aliases=", parameters, argument)] = result
    if len(set(found.values())) < len(found):
        raise ValueError(f"{label}: aliases= gives one result the memory of several arguments")
    return tuple(found.items())


def _label(function: Any, name: Any) -> str:
    """How errors call what is bound."""
    if not callable(function):
        raise TypeError(
            f"bind({function!r}): a {type(function).__name__} is not callable; the first argument"
            " is a function, or a signature when bind is used as a decorator"
        )
    if isinstance(function, Binding):
        bound = function.definition.label
        raise TypeError(f"bind({bound}): it is bound already; bind {bound}.function")
    if name is not None:
        return _checked_name(name)
    inner = function
    while isinstance(inner, partial):
        inner = inner.func
    return getattr(inner, "__name__", None) or type(inner).__name__


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"bind(name={name!r}): a name is a string")
    if not name or _identity.STEP in name:
        raise ValueError(
            f"bind(name={name!r}): a name is a string that is not empty, without"
            f" {_identity.STEP!r}, which leads from a function's name to its derivatives'"
        )
    return name


def _parsed(label: str, signature: str) -> _signature.Signature:
    try:
        return _signature.parse(signature)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: {error}") from None


def _compute(label: str, compute_dtype: Any) -> np.dtype:
    try:
        compute = np.dtype(compute_dtype)
    except TypeError:
        raise TypeError(f"{label}: compute_dtype={compute_dtype!r} is no dtype") from None
    if not jnp.issubdtype(compute, np.number):
        raise TypeError(
            f"{label}: compute_dtype={compute.name!r} is no number type; give 'float64', say"
        )
    _dtypes.check(label, "compute_dtype", compute)
    return compute


def _check_count(label: str, parameters: Parameters, shapes: Any) -> None:
    signature = getattr(shapes, "signature", None)
    if signature is None or parameters.variadic:
        return
    least = len(parameters.operands) - len(parameters.defaults)
    if len(signature.inputs) < least:
        raise TypeError(
            f"{label}: the signature {signature} has {len(signature.inputs)} inputs, but the"
            f" function has {len(parameters.operands)} positional parameters"
            f" ({', '.join(parameters.operands)}); static parameters are keyword-only"
        )


def _check_linearity(label: str, parameters: Parameters, role: Function) -> None:
    both = role.multilinear & role.nondiff
    if role.linear is True and role.multilinear:
        raise TypeError(f"{label}: linear=True leaves nothing for multilinear=; give one of them")
    if not isinstance(role.linear, bool):
        both |= role.linear & (role.nondiff | role.multilinear)
    if both:
        name = parameters.name(min(both))
        shown = f"argument {min(both)}" + (f" ({name})" if name else "")
        raise TypeError(
            f"{label}: {shown} is named in more than one of linear=, multilinear= and nondiff="
        )
