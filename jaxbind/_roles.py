"""What a binding stands for: a function, or the pushforward, pullback or transpose of one.

A derivative is itself a binding, so that it can have derivatives; its role says what follows
from its parent: the shapes of its results, in which operands it is linear, and what its
transpose is. With f a function, J its Jacobian at x, and Aᵀ the transpose without conjugation:

    f.jvp(x, t_x)   = J(x) t_x           linear in t_x;   transposed: f.vjp
    f.vjp(x, ct_y)  = J(x)ᵀ ct_y         linear in ct_y;  transposed: f.jvp
    f.transpose(a, ct_y)                 where f is linear in x; transposed in ct_y: f itself,
                                         in another argument of a multilinear f: f's transpose there
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import numpy as np
from jax.interpreters import ad

from jaxbind import _dtypes
from jaxbind._call import Call, Outputs, PyTreeDef, core_struct, fill, joined, masked, owners
from jaxbind._parameters import Parameters
from jaxbind._shapes import Shapes

if TYPE_CHECKING:
    from jaxbind._definition import Definition

#: kinds of operands: no derivative; by rule; anything else names a group of operands in
#: which the function is jointly linear.
NONDIFF = None
GENERAL = "general"
LINEAR = "linear"

Kinds = tuple[Hashable | None, ...]


class Like(NamedTuple):
    """The results of a transposed function: the arguments that were transposed away."""

    positions: tuple[int, ...]
    trees: tuple[PyTreeDef, ...]
    structs: tuple[jax.ShapeDtypeStruct, ...]
    #: which of them are wanted, where the rule asks
    wanted: tuple[bool, ...]


class Wanted(NamedTuple):
    """The results of a pullback: for which operands of its parent; and the parent's own."""

    operands: tuple[bool, ...]
    parent: tuple | None


def is_undefined(operand: Any) -> bool:
    """Whether JAX transposes with respect to this operand."""
    return ad.is_undefined_primal(operand)


def core_structs(call: Call, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    return [core_struct(x if hasattr(x, "shape") else x.aval, call.loop) for x in operands]


@dataclass(frozen=True)
class Function:
    """A function that somebody has bound.

    Attributes:
      shapes: what was declared about its results.
      linear: positions of the arguments in which it is jointly linear; ``True``: all that
        have a derivative.
      multilinear: positions of those in each of which it is linear separately.
      nondiff: positions of those without a derivative.
      compute: the dtype that it knows, if only one.
    """

    shapes: Shapes
    linear: frozenset[int] | bool
    multilinear: frozenset[int]
    nondiff: frozenset[int]
    compute: np.dtype | None

    #: how many positional arguments a rule gets, if that is known
    positional: ClassVar[None] = None
    #: whether a rule may ask which cotangents are wanted
    takes_wrt: ClassVar[bool] = False
    #: whether its results are cotangents: JAX's, of a real operand, is the real part
    gives_cotangents: ClassVar[bool] = False
    #: calls by JAX what a rule is a part of only
    whole: ClassVar[None] = None

    def calling(self, parameters: Parameters) -> Parameters:
        """How something beside the function is called: as the function is."""
        return parameters

    def lacks(self, call: Call, structs: Sequence[Any]) -> bool:
        """Whether operands lack optional dimensions: then a function cannot tell its core ones."""
        del call
        signature = getattr(self.shapes, "signature", None)
        if signature is None:
            return False
        return signature.of_core_ranks([len(s.shape) for s in structs]) is not signature

    @property
    def mixed(self) -> bool:
        """Whether some of the derivative follows from linearity, without a rule."""
        return bool(self.linear or self.multilinear)

    @property
    def bare(self) -> bool:
        """Whether a tuple of one may be returned for a single result."""
        return getattr(self.shapes, "bare", False)

    def operand_name(self, definition: Definition, tree: PyTreeDef, index: int) -> str:
        position, path = owners(tree)[index]
        return f"argument {position} ({definition.argument_name(position)}{path})"

    def kind(self, position: int) -> Hashable | None:
        if position in self.nondiff:
            return NONDIFF
        if self.linear is True or (self.linear and position in self.linear):
            return LINEAR
        return position if position in self.multilinear else GENERAL

    def kinds(self, call: Call, structs: Sequence[Any]) -> Kinds:
        return tuple(
            self.kind(position) if _dtypes.is_inexact(s.dtype) else NONDIFF
            for (position, _), s in zip(owners(call.tree), structs, strict=True)
        )

    def seen(self, call: Call, structs: Sequence[Any]) -> tuple[np.dtype, ...]:
        return tuple(
            np.dtype(s.dtype)
            if position in self.nondiff
            else _dtypes.computing(np.dtype(s.dtype), self.compute)
            for (position, _), s in zip(owners(call.tree), structs, strict=True)
        )

    def core_ranks(self, call: Call, ranks: Sequence[int]) -> list[int] | None:
        names = [call.operand(i) for i in range(len(ranks))]
        given = enumerate(call.tree.children())
        absent = [
            f"argument {position} ({call.definition.argument_name(position)})"
            for position, arg in given
            if arg.num_leaves == 0
        ]
        return self.shapes.core_ranks(call.definition.label, ranks, names, absent)

    def check(self, call: Call, shapes: Sequence[Sequence[Any]]) -> None:
        names = [call.operand(i) for i in range(len(shapes))]
        self.shapes.check(call.definition.label, shapes, names)

    def outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        return self.shapes.outputs(call, structs)

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        return self.shapes.results(call, ranks)

    def prepare(self, definition: Definition, args: tuple) -> tuple[tuple, Any]:
        """Normalise the arguments of a direct call; returns them and ``Call.like``."""
        del definition
        return args, None

    def completed(self, call: Call, structs: Sequence[Any]) -> Any:
        """``Call.like`` where every result that could be wanted is."""
        del structs
        return call.like

    def wanted(self, call: Call) -> tuple[bool, ...]:
        """Of which of its parent's arguments a derivative gives the cotangents."""
        del call
        return ()

    def transpose(
        self, call: Call, group: Hashable, operands: Sequence[Any], cts: Sequence[Any]
    ) -> tuple[list[int], list[Any]]:
        """Transpose with respect to the operands of ``group``.

        Returns the indices of its operands (those wanted, if the rule asks for ``wrt``), and a
        cotangent for each.
        """
        definition = call.definition
        structs = core_structs(call, operands)
        kinds = self.kinds(call, structs)
        members = [i for i, kind in enumerate(kinds) if kind == group]
        own = owners(call.tree)
        positions = tuple(sorted({own[i][0] for i in members}))
        rule = definition.transpose_rule(group, call.operand(members[0]))
        children = call.tree.children()
        taken = [position in positions for position, _ in own]
        for index, t in enumerate(taken):
            if t and index not in members:
                raise TypeError(
                    f"{definition.label}: {call.operand(index)} is {structs[index].dtype.name}"
                    " inside an argument declared linear; make it an argument of its own"
                )
        like = Like(
            positions,
            tuple(children[p] for p in positions),
            tuple(structs[i] for i in members),
            tuple(not rule.asks_wrt or is_undefined(operands[i]) for i in members),
        )
        outputs = definition.outputs(call, structs)
        cts_tree = masked(outputs.tree, spread(outputs, cts))
        rest = [child for p, child in enumerate(children) if p not in positions]
        transposed = Call(rule, call.static, joined(*rest, cts_tree), call.loop, like)
        others = [x for x, t in zip(operands, taken, strict=True) if not t]
        given = [ct for ct in cts if ct is not None]
        wanted = [i for i, w in zip(members, like.wanted, strict=True) if w]
        return wanted, definition.bind(transposed, [*others, *given])


def spread(outputs: Outputs, cts: Sequence[Any]) -> tuple[bool, ...]:
    return tuple(fill(outputs.kept, [ct is not None for ct in cts], False))


def differentiable(outputs: Outputs) -> Outputs:
    """The results that have a tangent: floating-point and complex ones."""
    keep = [_dtypes.is_inexact(s.dtype) for s in outputs.structs]
    if all(keep):
        return outputs
    return Outputs(
        outputs.tree,
        tuple(fill(outputs.kept, keep, False)),
        tuple(s for s, k in zip(outputs.structs, keep, strict=True) if k),
        tuple(d for d, k in zip(outputs.declared, keep, strict=True) if k),
    )
