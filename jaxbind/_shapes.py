"""Declared results: how shapes and dtypes of a call's results follow from its operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten, tree_leaves, tree_structure, tree_unflatten

from jaxbind import _dtypes, _jax
from jaxbind._call import Call, Outputs, PyTreeDef
from jaxbind._kernels import Kernel, check_operand
from jaxbind._parameters import Parameters
from jaxbind._signature import Signature, parse
from jaxbind._ufuncs import UfuncLoops, ufunc_of, writes_into_operands

Structs = Sequence[jax.ShapeDtypeStruct]

ARRAY = tree_structure(0)


class Shapes(Protocol):
    """What was declared about the results of a function."""

    def core_ranks(
        self, label: str, ranks: Sequence[int], names: Sequence[str], absent: Sequence[str] = ()
    ) -> list[int] | None:
        """Core rank of each operand; ``None`` where all its dimensions are core.

        ``absent`` names arguments that are ``None``.
        """
        ...

    def check(self, label: str, core_shapes: Sequence[Sequence[Any]], names: Sequence[str]) -> None:
        """Raise ``ValueError`` where core shapes contradict the declaration."""
        ...

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        """Structure and core ranks of the results; only asked where core ranks are known."""
        ...

    def outputs(self, call: Call, structs: Structs) -> Outputs: ...

    def told(self) -> str:
        """What was declared about the results besides a signature, as programs remember it."""
        ...


@dataclass(frozen=True)
class FromSignature:
    """Shapes from a gufunc signature; dtypes given, or those that the operands promote to."""

    signature: Signature
    dtypes: tuple[np.dtype, ...] | None
    compute: np.dtype | None

    def core_ranks(
        self, label: str, ranks: Sequence[int], names: Sequence[str], absent: Sequence[str] = ()
    ) -> list[int]:
        self._check_count(label, names, absent)
        resolved = self.signature.without_missing(ranks)
        for core, rank, name in zip(resolved.inputs, ranks, names, strict=True):
            if rank < len(core):
                shown = ",".join(map(str, core))
                raise ValueError(
                    f"{label}: {name} has {rank} dimension{'s' * (rank != 1)}, but its core"
                    f" dimensions are ({shown}) in the signature {self.signature}"
                )
        return [len(core) for core in resolved.inputs]

    def _check_count(self, label: str, names: Sequence[str], absent: Sequence[str]) -> None:
        count, wanted = len(names), len(self.signature.inputs)
        if count != wanted:
            inside = next((n for n in names if n.endswith("])")), None)
            hint = ""
            if count < wanted and absent:
                hint = f". {absent[0]} is None, which is no array"
            elif inside:
                hint = (
                    f". {inside} is an item of a list, tuple or dict, each of which is an operand"
                    " of its own: pass jnp.asarray(...) for one array"
                )
            elif count > wanted:
                surplus = names[wanted].rpartition("(")[2].rstrip(")")
                hint = (
                    f". {names[wanted]} is one too many: all but keyword-only parameters are"
                    " operands"
                )
                if surplus.isidentifier():
                    hint += (
                        ". Of a function that is not yours, bind one that has it behind a *:"
                        f" lambda x, *, {surplus}: f(x, {surplus})"
                    )
            raise TypeError(
                f"{label}: got {count} operand array{'s' * (count != 1)}; the signature"
                f" {self.signature} has {wanted}{hint}"
            )

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        outputs = self.signature.without_missing(ranks).outputs
        return self.tree, [len(core) for core in outputs]

    def check(self, label: str, core_shapes: Sequence[Sequence[Any]], names: Sequence[str]) -> None:
        resolved = self.signature.of_core_ranks([len(s) for s in core_shapes])
        try:
            resolved.sizes(core_shapes, names)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None

    def outputs(self, call: Call, structs: Structs) -> Outputs:
        shapes = [s.shape for s in structs]
        signature = self.signature.of_core_ranks([len(s) for s in shapes])
        sizes = signature.sizes(shapes, [call.operand(i) for i in range(len(shapes))])
        sizes |= self.computed_sizes(call, structs)
        core_shapes = signature.output_shapes(sizes)
        dtypes = self.dtypes or (self._promoted(call, structs),) * len(core_shapes)
        declared = [jax.ShapeDtypeStruct(*sd) for sd in zip(core_shapes, dtypes, strict=True)]
        return make_outputs(call.definition.label, self.tree, declared, self.compute)

    def computed_sizes(self, call: Call, structs: Structs) -> dict[str, int]:
        """The sizes of core dimensions that stand only in outputs: none, if text was declared."""
        return {}

    def told(self) -> str:
        return ", ".join(d.name for d in self.dtypes or ())

    @property
    def tree(self) -> PyTreeDef:
        """The structure of the results: an array, or a tuple of several."""
        count = len(self.signature.outputs)
        return ARRAY if count == 1 else tree_structure((0,) * count)

    def _promoted(self, call: Call, structs: Structs) -> np.dtype:
        kinds = call.definition.role.kinds(call, structs)
        dtypes = [s.dtype for s, kind in zip(structs, kinds, strict=True) if kind is not None]
        dtypes = dtypes or [s.dtype for s in structs] or [_dtypes.canonical(np.float64)]
        promoted = jnp.result_type(*dtypes)
        if self.compute is not None and not _converts(self.compute, np.dtype(promoted)):
            promoted = _dtypes.canonical(self.compute)
        elif self.compute is not None and _dtypes.is_complex(self.compute):
            promoted = jnp.promote_types(promoted, np.complex64)
        return np.dtype(promoted)


@dataclass(frozen=True)
class FromOut:
    """Shapes and dtypes given by ``out=``: structs, a callable, or ``"infer"``."""

    out: Any
    compute: np.dtype | None

    def core_ranks(
        self, label: str, ranks: Sequence[int], names: Sequence[str], absent: Sequence[str] = ()
    ) -> None:
        return None

    def check(self, label: str, core_shapes: Sequence[Sequence[Any]], names: Sequence[str]) -> None:
        return None

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        raise AssertionError("all dimensions are core")

    def outputs(self, call: Call, structs: Structs) -> Outputs:
        label = call.definition.label
        try:
            with _jax.computing():
                result = self._result(call, structs)
        except Exception as error:
            error.add_note(f"(in out= of {label}, for {', '.join(map(_shown, structs))})")
            raise
        leaves, tree = tree_flatten(result)
        if not leaves and call.definition.options.effect is None:
            raise TypeError(
                f"{label}: out= gives {result!r}, which declares no result; give a"
                " jax.ShapeDtypeStruct(shape, dtype) for each (a function must return them), or"
                " effect='unordered' or 'ordered' if it is called for its effect alone"
            )
        for leaf in leaves:
            if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
                raise TypeError(
                    f"{label}: out= gives {leaf!r}, which has no shape and dtype; it must give"
                    " jax.ShapeDtypeStruct(shape, dtype), or a tuple, list or dict of them"
                )
        return make_outputs(label, tree, leaves, self.compute)

    def _result(self, call: Call, structs: Structs) -> Any:
        if isinstance(self.out, str):
            return _run_on_zeros(call, structs)
        if not callable(self.out):
            return self.out
        arguments = call.arguments(list(structs))
        parameters = Parameters.of(self.out).behind(len(arguments))
        return self.out(*arguments, **parameters.accepted(call.static.values))

    def told(self) -> str:
        if isinstance(self.out, str) or callable(self.out):
            return self.out if isinstance(self.out, str) else "of a function"
        return ", ".join(f"{np.dtype(s.dtype).name}{list(s.shape)}" for s in tree_leaves(self.out))


def _shown(struct: jax.ShapeDtypeStruct) -> str:
    return f"{struct.dtype.name}[{','.join(map(str, struct.shape))}]"


def _run_on_zeros(call: Call, structs: Structs) -> Any:
    binding = call.definition
    if not all(isinstance(size, int) for s in structs for size in s.shape):
        raise TypeError(
            f"{binding.label}: out='infer' runs the function once on zeros, whose sizes must be"
            f" known: got {', '.join(map(_shown, structs))}. Declare its results with out= or a"
            " signature"
        )
    zeros = [
        np.zeros(s.shape, seen)
        for s, seen in zip(structs, binding.role.seen(call, structs), strict=True)
    ]
    parameters = binding.parameters
    try:
        result = binding.function(*call.arguments(zeros), **parameters.accepted(call.static.values))
    except Exception as error:
        raise TypeError(
            f"{binding.label}: out='infer' runs the function once on zeros, and that raised"
            f" {type(error).__name__}: {error}. Declare its results with out= or a signature"
        ) from error
    leaves, tree = tree_flatten(result)
    arrays = [np.asarray(leaf) for leaf in leaves]
    return tree_unflatten(tree, [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays])


def make_outputs(
    label: str, tree: Any, declared: Sequence[Any], compute: np.dtype | None
) -> Outputs:
    """Check declared results and bring their dtypes to what JAX can hold."""
    structs, dtypes = [], []
    for index, leaf in enumerate(declared):
        dtype = _dtypes.canonical(leaf.dtype)
        _dtypes.check(label, f"result {index}", dtype)
        if any(isinstance(size, int) and size < 0 for size in leaf.shape):
            raise ValueError(f"{label}: result {index} is declared with shape {tuple(leaf.shape)}")
        structs.append(jax.ShapeDtypeStruct(tuple(leaf.shape), dtype))
        known = np.dtype(leaf.dtype)
        if _converts(compute, known):
            known = _dtypes.computing(known, compute)
        dtypes.append(known)
    return Outputs(tree, (True,) * len(structs), tuple(structs), tuple(dtypes))


def _converts(compute: np.dtype | None, known: np.dtype) -> bool:
    """Whether a result declared as ``known`` is computed in another dtype.

    Numbers are, integers only by functions that know integers only: an index stays an index.
    """
    if compute is None:
        return False
    return _dtypes.is_inexact(known) or (compute.kind in "iu" and known.kind in "iu")


def declare(
    label: str,
    signature: Signature | None,
    out: Any,
    dtype: Any,
    compute: np.dtype | None,
    effect: str | None = None,
) -> Shapes:
    """Make the declaration from `bind`'s arguments; with an effect there may be no results.

    Raises:
      TypeError: if not exactly one of signature and ``out`` is given, or ``dtype`` does not
        fit the signature.
    """
    if signature is not None and out is not None:
        raise TypeError(
            f"{label}: both a signature ({signature}) and out= are given; a signature already"
            " gives the shapes (its dtypes can be set with dtype=)"
        )
    if signature is not None:
        return FromSignature(signature, _dtypes_of(label, dtype, len(signature.outputs)), compute)
    if out is None and effect is None:
        raise TypeError(
            f"{label}: neither a signature nor out= is given, so its result's shape is unknown."
            " Write bind('(n),(n)->()') if it works like a gufunc; bind(out=...) with a"
            " jax.ShapeDtypeStruct or a function that computes it; or bind(out='infer') to run"
            " the function once on zeros"
        )
    if dtype is not None:
        raise TypeError(f"{label}: dtype={dtype!r} goes with a signature; out= gives the dtypes")
    if isinstance(out, str) and out != "infer":
        raise TypeError(
            f"{label}: out={out!r} is not understood; give structs, a callable, or 'infer'"
        )
    return FromOut(out, compute)


def _dtypes_of(label: str, dtype: Any, count: int) -> tuple[np.dtype, ...] | None:
    if dtype is None:
        return None
    given = tuple(dtype) if isinstance(dtype, (tuple, list)) else (dtype,) * count
    if len(given) != count:
        raise TypeError(
            f"{label}: dtype= names {len(given)} dtypes; the signature has {count} outputs"
        )
    try:
        return tuple(np.dtype(d) for d in given)
    except TypeError:
        raise TypeError(f"{label}: dtype={dtype!r} names no dtype that NumPy knows") from None


# NumPy ufuncs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FromUfunc(FromSignature):
    """Shapes from a ufunc's own signature, dtypes from the loop that NumPy would choose."""

    loops: UfuncLoops

    @classmethod
    def of(cls, label: str, function: Any, dtype: Any, compute: np.dtype | None) -> FromUfunc:
        ufunc: Any = ufunc_of(function)
        text = ufunc.signature or f"{','.join(['()'] * ufunc.nin)}->{','.join(['()'] * ufunc.nout)}"
        remedy = writes_into_operands(function)
        if remedy is not None:
            raise TypeError(
                f"{label}: the loop of this ufunc writes into its operand, and JAX's arrays must"
                f" not change. Remedy: {remedy}"
            )
        try:
            signature = parse(text, computed=True)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
        results = _dtypes_of(label, dtype, ufunc.nout)
        return cls(signature, results, compute, UfuncLoops(function, signature, results))

    def outputs(self, call: Call, structs: Structs) -> Outputs:
        if self.dtypes is not None or self.compute is not None:
            return super().outputs(call, structs)
        given = tuple(np.dtype(s.dtype) for s in structs)
        try:
            chosen = self.loops.resolve(given)
        except TypeError as error:
            raise TypeError(
                f"{call.definition.label}: NumPy has no loop of this ufunc for operands of dtypes"
                f" {', '.join(d.name for d in given)}: {error}"
            ) from None
        results = chosen[len(given) :]
        if any(d.kind == "O" for d in results):  # np.frompyfunc: nobody knows
            return super().outputs(call, structs)
        return replace(self, dtypes=results).outputs(call, structs)

    def computed_sizes(self, call: Call, structs: Structs) -> dict[str, int]:
        wanted = self.signature.computed()
        if not wanted:
            return {}
        label = call.definition.label
        shapes = [s.shape for s in structs]
        if not all(isinstance(size, int) for shape in shapes for size in shape):
            raise TypeError(
                f"{label}: NumPy computes the size of core dimension {min(wanted)} of the signature"
                f" {self.signature} from the operands' sizes, which must be known: got shapes"
                f" {', '.join(map(str, shapes))}. Export it for given sizes"
            )
        try:
            return self.loops.computed_sizes(shapes, [np.dtype(s.dtype) for s in structs])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{label}: {error}") from None


# Kernels ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FromKernel(FromSignature):
    """Shapes from a kernel's signature, dtypes from its C types."""

    kernel: Kernel

    @classmethod
    def of(cls, label: str, kernel: Kernel, compute: Any) -> FromKernel:
        if compute is not None:
            raise TypeError(
                f"{label}: a Kernel converts to its own dtypes; leave compute_dtype= out"
            )
        inputs = len(kernel.signature.inputs)
        return cls(kernel.signature, kernel.loop.dtypes[inputs:], None, kernel)

    def outputs(self, call: Call, structs: Structs) -> Outputs:
        label = call.definition.label
        for index, (struct, known) in enumerate(
            zip(structs, self.kernel.loop.dtypes, strict=False)
        ):
            check_operand(label, call.operand(index), np.dtype(struct.dtype), known)
        self.kernel.loop.static_values(label, call.static.values)
        return super().outputs(call, structs)
