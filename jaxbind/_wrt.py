"""``wrt``: which arguments' cotangents a vjp or transpose rule need compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxbind._call import Call, PyTreeDef, owners


def by_argument(tree: PyTreeDef, operands: Sequence[bool]) -> tuple[bool, ...]:
    """Flags of arguments from those of their leaves."""
    flags = [False] * len(tree.children())
    for (position, _), flag in zip(owners(tree), operands, strict=True):
        flags[position] |= flag
    return tuple(flags)


class Wrt(tuple):
    """One bool per positional argument: ``wrt[i]``. ``"x" in wrt`` and ``i in wrt`` ask, too."""

    names: tuple[str, ...]

    def __new__(cls, wanted: Sequence[bool], names: Sequence[str]) -> Wrt:
        self = super().__new__(cls, wanted)
        self.names = tuple(names)
        return self

    @classmethod
    def of(cls, call: Call) -> Wrt:
        """What the call of a pullback or a transpose wants."""
        return cls.named(call.definition.parent, call.definition.role.wanted(call))

    @classmethod
    def named(cls, parent: Any, wanted: Sequence[bool]) -> Wrt:
        return cls(wanted, [parent.argument_name(i) for i in range(len(wanted))])

    def __contains__(self, argument: object) -> bool:
        if isinstance(argument, str):
            return argument in self.names and self[self.names.index(argument)]
        if isinstance(argument, bool):
            return any(w is argument for w in self)
        return isinstance(argument, int) and 0 <= argument < len(self) and self[argument]
