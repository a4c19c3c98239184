"""Trying the laws on drawn examples: Hypothesis searches and shrinks, we say what was found."""

from __future__ import annotations

import random
import time
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
from hypothesis import settings
from hypothesis.strategies import SearchStrategy

from jaxbind.testing._arrays import samples
from jaxbind.testing._case import Case
from jaxbind.testing._compare import is_complex, kind_of
from jaxbind.testing._inputs import Drawing, check_drawn
from jaxbind.testing._law import diagnosis_of
from jaxbind.testing._options import Options, options_for
from jaxbind.testing._search import Search, cases_of
from jaxbind.testing._subject import RAISES, Static, Subject
from jaxbind.testing._violation import LawViolation
from jaxbind.testing.laws import CAUSES_FIRST, LAWS, Law

#: sizes of core dimensions that one check compiles for
SIZES = 6

#: into how many parts a search is divided
PARTS = 16


@dataclass
class Result:
    """What came of one law.

    Attributes:
      status: ``"passed"``, ``"violated"`` or ``"skipped"``.
      reason: why it was skipped.
      violation: what was found, if it is broken.
      examples: how many examples said something.
    """

    law: str
    status: str
    reason: str = ""
    violation: LawViolation | None = None
    examples: int = 0
    seconds: float = 0.0


@dataclass
class Check:
    """One binding and the laws to try on it."""

    subject: Subject
    options: Options
    seed: int
    _drawing: Drawing | None = None
    _seen: dict[tuple, tuple] = field(default_factory=dict)

    @classmethod
    def of(cls, f: Any, keywords: Mapping[str, Any]) -> Check:
        subject = Subject.of(f)
        options = options_for(f, keywords)
        seed = options.seed
        if seed is None:
            seed = 0 if settings.default.derandomize else random.randrange(2**32)  # pyright: ignore
        return cls(subject, options, seed)

    @property
    def wanted(self) -> int:
        """How many examples are drawn for a law of full cost."""
        if self.options.max_examples is not None:
            return self.options.max_examples
        return settings.default.max_examples  # pyright: ignore[reportOptionalMemberAccess]

    @property
    def statics(self) -> list[Static]:
        return self.options.statics

    def laws(self) -> list[Law]:
        """The laws to try, in the order in which one explains the next."""
        chosen = set(LAWS if self.options.laws is None else self.options.laws)
        chosen -= set(self.options.skip)
        return [law for law in CAUSES_FIRST if law.name in chosen]

    def remember(self, case: Case) -> None:
        shapes = tuple(x.shape for x in case.leaves)
        self._seen.setdefault(shapes, case.args)

    def elsewhere(self, args: tuple) -> tuple | None:
        """Arguments of other shapes."""
        shapes = tuple(np.shape(x) for x in jax.tree.leaves(args))
        others = [a for s, a in self._seen.items() if s != shapes and all(map(np.prod, s))]
        return others[0] if others else None

    @property
    def narrow(self) -> bool:
        """Whether the function is meant for 32 bits, too: unless ``dtypes=`` says otherwise."""
        if self.options.dtypes is None or self.options.inputs is not None:
            return True
        wide = (np.dtype("float64"), np.dtype("complex128"), np.dtype("int64"), np.dtype("uint64"))
        return not any(d in wide for f in self.drawing().families for d in f) or any(
            kind_of(d) in "fc" and d not in wide for f in self.drawing().families for d in f
        )

    @property
    def kinds(self) -> str:
        """Of floating-point numbers: real and complex ones, unless ``dtypes=`` says otherwise."""
        if self.options.dtypes is None or self.options.inputs is not None:
            return "fc"
        return "".join({kind_of(d) for f in self.drawing().families for d in f} & set("fc"))

    # Drawing -------------------------------------------------------------------------------------

    def drawing(self) -> Drawing:
        if self._drawing is None:
            o = self.options
            made = Drawing.of(self.subject, o.elements, o.dtypes, self.statics)
            self._drawing = made.pooled(SIZES, self.seed)
        return self._drawing

    def strata(self, law: Law, count: int) -> list[tuple[Static, SearchStrategy[list[tuple]]]]:
        """Static keywords, and a strategy of groups of arguments, for parts of the search.

        The simplest come first, so that the first to fail has the shortest example.
        """
        rng = np.random.default_rng([self.seed, zlib.crc32(law.name.encode())])
        statics = [self.statics[i] for i in rng.permutation(len(self.statics))]
        given = self.options.inputs
        if given is None:
            drawings = self.drawing().strata(max(len(statics), min(PARTS, -(-count // 4))), rng)
            return [
                (statics[i % len(statics)], drawing.groups(1 + law.batch))
                for i, drawing in enumerate(drawings)
            ]
        if not isinstance(given, SearchStrategy):
            raise TypeError(
                f"jaxbind.testing: inputs={given!r} for {self.subject.label} is a"
                f" {type(given).__name__}; it must be a Hypothesis strategy of argument tuples"
            )
        one = given.map(partial(check_drawn, self.subject.label))
        several = st.lists(one, min_size=1 + law.batch, max_size=1 + law.batch)
        return [(static, several) for static in statics]

    def examples(self) -> list[Case]:
        """A few examples, of the larger shapes first."""
        return self._others(LAWS["jvp"], self.strata(LAWS["jvp"], 40))

    # Trying --------------------------------------------------------------------------------------

    def run(self, law: Law) -> Result:
        """Try a law; never raises for what it finds about the binding."""
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # extreme values are drawn on purpose
            result = self._run(law)
        result.seconds = time.perf_counter() - started
        return result

    def _run(self, law: Law) -> Result:
        count = max(1, -(-self.wanted * law.cost // 100))
        search = Search(self, law)
        strata = self.strata(law, count)
        for part, (static, groups) in enumerate(strata):
            search.run(static, groups, -(-count // len(strata)), part)
            if search.violations or search.inapplicable:
                break
        if search.violations:
            found = self._told(search, self._others(law, strata))
            return Result(law.name, "violated", violation=found)
        if not search.said:
            reason = search.skips[0] if search.skips else "no example was drawn"
            return Result(law.name, "skipped", reason=reason)
        return Result(law.name, "passed", examples=search.said)

    def _others(self, law: Law, strata: list) -> list[Case]:
        """More examples, of larger shapes, for the diagnosis."""
        found = []
        for static, groups in strata[-1:-7:-1]:
            try:
                found += samples(cases_of(self, static, groups), 4, self.seed)[1:]
            except Exception:  # whatever a user's strategy does
                continue
        return found

    def _told(self, search: Search, others: list[Case]) -> LawViolation:
        """The violation with its diagnosis and how to find it again."""
        law, violation = search.law, search.violations[-1]
        if law.name in ("jvp", "adjoint", "higher") and self._chose_complex(search.witnesses):
            real = self._at_real_parts(law, [violation.case, *search.witnesses[-2:]])
            if real is None:
                violation.found += (
                    "\n(the function is analytic, so complex operands are tried, too; if it is"
                    " meant for real ones, say dtypes=float)"
                )
            else:
                violation = real
        violation.diagnosis = diagnosis_of(law, violation, [*search.witnesses, *others])
        violation.reproduce = self._call(law)
        violation.__notes__ = []  # Hypothesis'
        return violation

    def _chose_complex(self, broken: list[Case]) -> bool:
        """Whether a law is broken by complex operands only, which nobody asked for."""
        if self.options.inputs is not None or self.options.dtypes is not None:
            return False
        families = self.drawing().families
        kinds = [{x.dtype.kind for x in case.leaves} for case in broken]
        return len(families) > 1 and bool(kinds) and all("c" in found for found in kinds)

    def _at_real_parts(self, law: Law, broken: list[Case]) -> LawViolation | None:
        """The fault at the real part of the operands, if it is there, too."""
        for case in broken:
            leaves = [np.real(x).copy() if is_complex(x) else x for x in case.leaves]
            real = Case(
                self.subject,
                case.rebuilt(leaves),
                case.static,
                statics=case.statics,
                seed=case.seed,
                rtol=case.rtol,
                atol=case.atol,
            )
            try:
                law.check(real)
            except LawViolation as violation:
                return violation
            except Exception:  # a function of complex numbers only, or nothing to say
                continue
        return None

    def _call(self, law: Law) -> str:
        """The call that finds the same again."""
        given = [f"laws=[{law.name!r}]", f"seed={self.seed}"]
        if self.wanted != 100:
            given.append(f"max_examples={self.wanted}")
        others = ("inputs", "static", "elements", "dtypes", "rtol", "atol")
        given += [f"{name}=..." for name in others if getattr(self.options, name) is not None]
        return f"testing.check({self.subject.label}, {', '.join(given)})"


def check(f: Any, **keywords: Any) -> None:
    """Check every law of a binding on drawn examples.

    Args:
      f: a binding.
      inputs: a Hypothesis strategy of tuples of its positional arguments; default: drawn from its
        signature (see `jaxbind.testing.inputs`).
      static: static keywords, or a list of several mappings of them.
      elements, dtypes: see `jaxbind.testing.inputs`.
      laws: the names of the laws to try; default: all (`jaxbind.testing.laws.LAWS`).
      skip: the names of laws not to try.
      max_examples: default: that of the active Hypothesis profile. Laws that compile much try
        fewer.
      seed: finds the same examples again.
      rtol, atol: tolerances instead of those that follow from dtypes and error estimates.

    Raises:
      LawViolation: for the first law that is broken, in an order in which a broken law explains
        those behind it.
      ValueError: if inputs cannot be drawn, or the function raises for all of them; for an
        unknown law, and an empty ``static``.
      TypeError: for what is no binding, or an unknown keyword.
    """
    run = Check.of(f, keywords)
    results = []
    for law in run.laws():
        result = run.run(law)
        if result.violation is not None:
            raise result.violation.with_traceback(None) from None
        results.append(result)
    raising = [r.reason for r in results if r.reason.startswith(RAISES)]
    if raising and not any(r.status == "passed" for r in results):
        raise ValueError(
            f"jaxbind.testing: nothing can be said about {run.subject.label}, for {raising[0]} for"
            " all examples. Give elements= (the values it takes), dtypes=, static= or inputs="
        )
