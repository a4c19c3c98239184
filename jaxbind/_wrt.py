"""``wrt``: which arguments' cotangents a vjp rule need compute."""

from __future__ import annotations

from collections.abc import Sequence

from jaxbind._call import Call, owners


class Wrt(tuple):
    """One bool per positional argument: ``wrt[i]``. ``"x" in wrt`` and ``i in wrt`` ask, too."""

    names: tuple[str, ...]

    def __new__(cls, wanted: Sequence[bool], names: Sequence[str]) -> Wrt:
        self = super().__new__(cls, wanted)
        self.names = tuple(names)
        return self

    @classmethod
    def of(cls, call: Call) -> Wrt:
        """What the call of a pullback wants."""
        tree = call.tree.children()[0]
        return cls.from_operands(call.definition.parent, tree, call.like.operands)

    @classmethod
    def from_operands(cls, parent, tree, wanted: Sequence[bool]) -> Wrt:
        count = len(tree.children())
        flags = [False] * count
        for (position, _), w in zip(owners(tree), wanted, strict=True):
            flags[position] |= w
        return cls(flags, [parent.argument_name(i) for i in range(count)])

    def __contains__(self, argument: object) -> bool:
        if isinstance(argument, str):
            return argument in self.names and self[self.names.index(argument)]
        if isinstance(argument, bool):
            return any(w is argument for w in self)
        return isinstance(argument, int) and 0 <= argument < len(self) and self[argument]
