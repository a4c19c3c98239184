"""`inputs`: a Hypothesis strategy of argument tuples, from a binding's signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
from hypothesis.extra import numpy as hnp
from hypothesis.strategies import SearchStrategy

from jaxbind._signature import Signature
from jaxbind.testing._arrays import MAGNITUDES, arrays_of, samples
from jaxbind.testing._families import Family, accepted
from jaxbind.testing._options import statics_of
from jaxbind.testing._subject import Static, Subject

#: what `elements=` may say about one argument
Elements = SearchStrategy | Callable[[tuple, np.dtype], SearchStrategy]

_LARGEST = 3


def inputs(
    f: Any,
    *,
    elements: Elements | Mapping[str, Elements] | None = None,
    dtypes: Any = None,
    static: Static | Sequence[Static] | None = None,
) -> SearchStrategy[tuple]:
    """A Hypothesis strategy of argument tuples (NumPy arrays without loop dimensions).

    Core dimensions have sizes of 0 to 3, drawn by Hypothesis' strategy for gufunc signatures.
    Numbers are of moderate size, between about 1e-5 and 1e3, and zero. Arrays also come
    Fortran-ordered, with negative strides, and non-contiguous.

    Args:
      f: a binding with a signature (a ufunc has one).
      elements: a strategy of numbers for every argument; or, by argument name, a strategy of
        numbers, a strategy of whole arrays, or a function ``(shape, dtype) -> strategy of
        arrays`` (for positive definite matrices, sorted values, ...).
      dtypes: a dtype, several from which one is drawn, or either by argument name. Default: what
        the function accepts: float64, or else float32, complex128, integers; integers for
        ``nondiff`` arguments if it only takes those; complex128 as well where the function
        is holomorphic.
      static: static keywords to call the function with, to find out what it accepts.

    Raises:
      ValueError: if ``f`` has no signature.
      TypeError: if a name is no argument.
    """
    subject = Subject.of(f)
    statics = statics_of(static)
    return Drawing.of(subject, elements, dtypes, statics).arguments()


@dataclass(frozen=True, eq=False)
class Drawing:
    """How arguments are drawn.

    Attributes:
      signature: of the binding.
      names: of the arguments.
      elements: what was said about each argument, or ``None``.
      families: dtypes that are drawn together.
      sizes: mappings of core dimensions to sizes, of which one is drawn; the simplest first.
      whole: the arguments of which a strategy draws whole arrays.
      magnitude: of numbers that nobody said anything about; default: several.
    """

    signature: Signature
    names: tuple[str, ...]
    elements: tuple[Elements | None, ...]
    families: tuple[Family, ...]
    whole: tuple[int, ...]
    sizes: tuple[dict[str, int], ...] | None = None
    magnitude: float | None = None

    @classmethod
    def of(cls, subject: Subject, elements: Any, dtypes: Any, statics: Sequence[Static]) -> Drawing:
        signature = subject.signature
        if signature is None:
            raise ValueError(
                f"jaxbind.testing: {subject.label} has no signature from which shapes could be"
                " drawn (it was bound with out=). Give inputs=, a Hypothesis strategy of tuples of"
                " its positional arguments: inputs=st.tuples(hypothesis.extra.numpy.arrays(float,"
                " (3, 4)))"
            )
        names = tuple(subject.parameter(i) for i in range(len(signature.inputs)))
        by_name = _by_name(subject, "elements", names, elements)
        for name, given in by_name.items():
            if not (isinstance(given, SearchStrategy) or callable(given)):
                raise TypeError(
                    f"jaxbind.testing: elements for {name} is a {type(given).__name__}; it must be"
                    " a Hypothesis strategy, or a function (shape, dtype) that returns one"
                )
        of_each = tuple(by_name.get(n) for n in names)
        drawn = {id(e): e for e in of_each if isinstance(e, SearchStrategy)}
        arrays = {i for i, e in drawn.items() if np.ndim(samples(e, 1)[0]) > 0}
        whole = tuple(i for i, e in enumerate(of_each) if id(e) in arrays)
        plain = cls(signature, names, of_each, (), whole)
        asked = _by_name(subject, "dtypes", names, dtypes)

        def tried_on(family: Family) -> list[tuple]:
            return samples(replace(plain, families=(family,)).arguments(), 6)

        families = accepted(subject, statics[0], of_each, [asked.get(n) for n in names], tried_on)
        return replace(plain, families=families)

    # Shapes --------------------------------------------------------------------------------------

    def pooled(self, count: int, seed: int) -> Drawing:
        """Draw from a few sizes only, so that each is compiled once."""
        drawn = samples(self._sizes(), 60, seed)
        unique = list({tuple(sorted(s.items())): s for s in drawn}.values())
        empty = [s for s in unique if 0 in s.values()][:1]
        full = [s for s in unique if 0 not in s.values()]
        ones = [s for s in full if all(n == 1 for n in s.values())]
        others = [s for s in full if s not in ones]
        others.sort(key=lambda s: -len(set(s.values())))  # sizes that differ tell most
        pool = [*ones[:1], *others[: count - 2], *empty]
        return replace(self, sizes=tuple(pool or [{}]))

    def strata(self, count: int, rng: np.random.Generator) -> list[Drawing]:
        """Drawings of one family, one set of sizes and one magnitude each; the smallest first.

        Each choice occurs as often as any other: Hypothesis alone would stay with few. The smallest
        are of the first family: of real numbers where there are complex ones, too.
        """

        def each(choices: Sequence[Any]) -> list[Any]:
            order: list[Any] = []
            while len(order) < count:
                order += [choices[i] for i in rng.permutation(len(choices))]
            return order[:count]

        full = [s for s in self.sizes or () if 0 not in s.values()]
        sizes = each(full or list(self.sizes or ({},)))
        empty = [s for s in self.sizes or () if 0 in s.values()]
        if empty and count >= len(full):
            sizes[-1] = empty[0]
        sizes.sort(key=lambda s: sum(s.values()))
        many, none = len(self.families), sum(0 in s.values() for s in sizes)
        # not i alone: static keywords go round as well, and each should meet each family
        turns = [i + i // many for i in range(-none, count - none)]
        families = [self.families[i % many] for i in turns]
        return [
            replace(self, families=(f,), sizes=(s,), magnitude=m)
            for f, s, m in zip(families, sizes, each(MAGNITUDES), strict=True)
        ]

    def _sizes(self) -> SearchStrategy[dict[str, int]]:
        dims = {d.name: d for core in self.signature.inputs for d in core}
        free = [d for d in dims.values() if d.size is None]
        if not free:
            return st.just({})
        text = ",".join(f"({d.name})" for d in free) + "->()"

        def sides(least: int) -> SearchStrategy[dict[str, int]]:
            shapes = hnp.mutually_broadcastable_shapes(
                signature=text, max_dims=0, min_side=least, max_side=_LARGEST
            )
            return shapes.map(
                lambda found: {d.name: s[0] for d, s in zip(free, found.input_shapes, strict=True)}
            )

        some = st.integers(0, 7).flatmap(lambda k: sides(0 if k == 7 else 1))
        optional = [d.name for d in free if d.optional]
        if not optional:
            return some

        def without(pair: tuple[dict[str, int], set[str]]) -> dict[str, int]:
            return {name: size for name, size in pair[0].items() if name not in pair[1]}

        return st.tuples(some, st.sets(st.sampled_from(optional))).map(without)

    # Arguments -----------------------------------------------------------------------------------

    def arguments(self) -> SearchStrategy[tuple]:
        return self.groups(1).map(lambda group: group[0])

    def groups(self, count: int) -> SearchStrategy[list[tuple]]:
        """Several tuples of arguments, of the same shapes and dtypes."""

        return _groups(self, count)

    @cached_property
    def drawn_sizes(self) -> SearchStrategy[dict[str, int]]:
        if self.sizes is None:
            return self._sizes()
        weighted = [s for s in self.sizes for _ in range(1 if 0 in s.values() else 4)]
        return st.sampled_from(weighted)

    def _array(self, i: int, shape: tuple, dtype: np.dtype) -> SearchStrategy[np.ndarray]:
        elements = self.elements[i]
        if elements is not None and not isinstance(elements, SearchStrategy):
            made = elements(shape, dtype)
            if not isinstance(made, SearchStrategy):
                raise TypeError(
                    f"jaxbind.testing: elements for {self.names[i]} returned a"
                    f" {type(made).__name__}; it must return a Hypothesis strategy of arrays of"
                    f" shape {shape}"
                )
            return made.map(partial(np.asarray, dtype=dtype))
        return arrays_of(dtype, shape, elements, self.magnitude)


@st.composite
def _groups(draw: Callable, drawing: Drawing, count: int) -> list[tuple]:
    signature = drawing.signature
    family: Family = draw(st.sampled_from(drawing.families))
    elements: Any = drawing.elements
    whole = {i: np.asarray(draw(elements[i]), family[i]) for i in drawing.whole}
    sizes = dict(draw(drawing.drawn_sizes))
    for i, value in whole.items():
        sizes |= {d.name: n for d, n in zip(signature.inputs[i], value.shape, strict=False)}
    shapes = [
        tuple(
            1
            if d.broadcastable and draw(st.booleans())
            else (sizes[d.name] if d.size is None else d.size)
            for d in core
            if d.size is not None or d.name in sizes  # an optional one may be missing
        )
        for core in signature.inputs
    ]
    rows = []
    for row in range(count):
        arrays = []
        for i, shape in enumerate(shapes):
            if i in whole:
                value = whole[i] if row == 0 else np.asarray(draw(elements[i]), family[i])
                hypothesis.assume(value.shape == shape)
            else:
                value = draw(drawing._array(i, shape, family[i]))
            arrays.append(value)
        rows.append(tuple(arrays))
    return rows


def _by_name(subject: Subject, option: str, names: Sequence[str], given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    definition = getattr(subject.binding, "definition", None)
    other = definition.parameters.numpy_names if definition else {}
    found = {other.get(name, name): value for name, value in given.items()}
    for name in found:
        if name not in names:
            raise TypeError(
                f"jaxbind.testing: {option} names {name!r}, which is no argument of"
                f" {subject.label}; it has {', '.join(names)}"
            )
    return found


def check_drawn(label: str, value: Any) -> tuple:
    """What ``inputs=`` drew, as a tuple of arguments.

    Raises:
      TypeError: if it is none.
    """
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f"jaxbind.testing: inputs= for {label} drew a {type(value).__name__}; it must draw"
            " tuples of the positional arguments: st.tuples(...)"
        )
    return tuple(value)
