"""Gufunc signatures: parsing, core and loop dimensions, output shapes.

The grammar is NumPy's (NEP 5 and NEP 20, "Generalized universal function API"): names or
fixed sizes in parentheses, ``?`` for a core dimension that an operand may lack, ``|1`` for
one that broadcasts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

_DIMENSION = re.compile(r"^(?:(?P<name>[^\W\d]\w*)|(?P<size>\d+))(?P<optional>\?)?(?P<one>\|1)?$")


class Dim(NamedTuple):
    """One core dimension: a name, or a fixed size; with NumPy's two modifiers."""

    name: str
    size: int | None = None
    optional: bool = False
    broadcastable: bool = False

    def __str__(self) -> str:
        return self.name + "?" * self.optional + "|1" * self.broadcastable


Core = tuple[Dim, ...]


@dataclass(frozen=True)
class Signature:
    """A parsed signature: the core dimensions of each input and each output."""

    inputs: tuple[Core, ...]
    outputs: tuple[Core, ...]

    def __str__(self) -> str:
        def show(cores: tuple[Core, ...]) -> str:
            return ",".join("(" + ",".join(map(str, core)) + ")" for core in cores)

        return f"{show(self.inputs)}->{show(self.outputs)}"

    @cached_property
    def elementwise(self) -> bool:
        return not any(self.inputs) and not any(self.outputs)

    def without_missing(self, ranks: Sequence[int]) -> Signature:
        """Drop the optional (``?``) dimensions that operands of these ranks do not have.

        As in NumPy, an operand that lacks dimensions drops as many as it lacks, from the left,
        and each is dropped wherever it stands.
        """
        missing: set[str] = set()
        for core, rank in zip(self.inputs, ranks, strict=True):
            present = [d.name for d in core if d.name not in missing]
            for dim in core:
                if len(present) <= rank:
                    break
                if dim.optional and dim.name in present:
                    missing.add(dim.name)
                    present = [name for name in present if name != dim.name]
        return self._without(missing)

    def of_core_ranks(self, ranks: Sequence[int]) -> Signature:
        """The signature of a call whose operands have these *core* ranks exactly."""
        cores = self.inputs + self.outputs
        optional = list(dict.fromkeys(d.name for core in cores for d in core if d.optional))
        for count in range(len(optional) + 1):
            for missing in itertools.combinations(optional, count):
                found = self._without(set(missing))
                if [len(core) for core in found.inputs] == list(ranks):
                    return found
        return self

    def _without(self, missing: set[str]) -> Signature:
        if not missing:
            return self

        def drop(cores: tuple[Core, ...]) -> tuple[Core, ...]:
            return tuple(tuple(d for d in core if d.name not in missing) for core in cores)

        return replace(self, inputs=drop(self.inputs), outputs=drop(self.outputs))

    def sizes(self, core_shapes: Sequence[Sequence[Any]], names: Sequence[str]) -> dict[str, Any]:
        """The size of each core dimension.

        Args:
          core_shapes: one shape per input, of the rank that the signature says.
          names: how to call each input in an error.

        Raises:
          ValueError: where a size differs between inputs or from a fixed size.
        """
        sizes: dict[str, Any] = {}
        source: dict[str, str] = {}
        stretchable: set[str] = set()  # sizes known so far only from dimensions that broadcast
        for core, shape, name in zip(self.inputs, core_shapes, names, strict=True):
            for dim, size in zip(core, shape, strict=True):
                if dim.size is not None and size != dim.size:
                    raise ValueError(
                        f"size {size} of a core dimension in {name} differs from the fixed"
                        f" size {dim.size} in the signature {self}"
                    )
                known = sizes.get(dim.name)
                if known is None or (dim.name in stretchable and known == 1):
                    sizes[dim.name], source[dim.name] = size, name
                    (stretchable.add if dim.broadcastable else stretchable.discard)(dim.name)
                elif size != known and not (dim.broadcastable and size == 1):
                    raise ValueError(
                        f"size {size} of core dimension {dim.name} in {name} differs from"
                        f" size {known} in {source[dim.name]}; the signature is {self}"
                    )
        return sizes

    def computed(self) -> set[str]:
        """Names of core dimensions that stand only in outputs."""
        known = {dim.name for core in self.inputs for dim in core}
        made = {dim.name for core in self.outputs for dim in core if dim.size is None}
        return made - known

    def output_shapes(self, sizes: dict[str, Any]) -> tuple[tuple[Any, ...], ...]:
        return tuple(
            tuple(sizes[d.name] if d.size is None else d.size for d in core)
            for core in self.outputs
        )


def parse(text: str, *, computed: bool = False) -> Signature:
    """Parse a gufunc signature such as ``"(m,n),(n)->(m)"``.

    Args:
      computed: whether outputs may have core dimensions of their own, the sizes of which the
        function itself computes (NumPy's ``"(m,n)->(p)"``).

    Raises:
      TypeError: if ``text`` is not a string.
      ValueError: naming the part that is not understood.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"signature={text!r} is a {type(text).__name__}; it must be a string such as"
            " '(m,n),(n)->(m)'. Output shapes that are computed go into out="
        )
    if re.search(r"\w\s+\w", text):
        raise ValueError(f"signature {text!r}: separate core dimensions by commas, as in '(m,n)'")
    compact = re.sub(r"\s+", "", text)
    sides = compact.split("->")
    if len(sides) != 2:
        raise ValueError(f"signature {text!r} must contain '->' once, as in '(n),(n)->()'")
    signature = Signature(_parse_side(sides[0], text), _parse_side(sides[1], text))
    if not signature.outputs:
        raise ValueError(f"signature {text!r} has no output; write '->()' for a scalar")
    _check_names(signature, text, computed)
    return signature


def _parse_side(side: str, text: str) -> tuple[Core, ...]:
    if not side:
        return ()
    if not re.fullmatch(r"\([^()]*\)(,\([^()]*\))*", side):
        raise ValueError(
            f"signature {text!r}: cannot read {side!r}; write one pair of parentheses per"
            " argument, separated by commas, as in '(m,n),(n)->(m)'"
        )
    return tuple(
        tuple(_parse_dimension(d, text) for d in core.split(",")) if core else ()
        for core in re.findall(r"\(([^()]*)\)", side)
    )


def _parse_dimension(part: str, text: str) -> Dim:
    match = _DIMENSION.match(part)
    if match is None:
        raise ValueError(
            f"signature {text!r}: {part!r} is no core dimension; write a name (n), a fixed size"
            " (3), or a name with NumPy's modifiers (n?, n|1)"
        )
    size = None if match["size"] is None else int(match["size"])
    optional, one = bool(match["optional"]), bool(match["one"])
    if one and (size is not None or optional):
        raise ValueError(
            f"signature {text!r}: {part!r} combines '|1' with a fixed size or with '?',"
            " which NumPy does not define either"
        )
    return Dim(match["name"] or part.rstrip("?"), size, optional, one)


def _check_names(signature: Signature, text: str, computed: bool) -> None:
    known = {dim.name: dim for core in signature.inputs for dim in core}
    for core in signature.inputs + signature.outputs:
        for dim in core:
            if dim.name not in known and dim.size is None and not computed:
                raise ValueError(
                    f"signature {text!r}: core dimension {dim.name} stands only in an output, so"
                    " its size is unknown; declare such shapes with out="
                )
            other = known.get(dim.name, dim)
            if dim.optional != other.optional:
                raise ValueError(
                    f"signature {text!r}: core dimension {dim.name} must carry '?' wherever it"
                    " stands or nowhere"
                )
    for core in signature.outputs:
        for dim in core:
            if dim.broadcastable:
                raise ValueError(
                    f"signature {text!r}: {dim} broadcasts, which is possible in inputs only"
                )
