"""`Law`: one property of a binding, to be called with concrete arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxbind.testing._case import Case
from jaxbind.testing._subject import (
    BrokenContract,
    Static,
    Subject,
    UserError,
    without_jax,
)
from jaxbind.testing._violation import Diagnosis, LawViolation, Skip


class Broken(Exception):
    """A law is broken; with what was found, and what a diagnosis needs to know."""

    def __init__(self, found: str, **detail: Any):
        super().__init__(found)
        self.detail = detail


class Law:
    """A law: call it with a binding and concrete arguments.

    Attributes:
      name: one word.
      statement: the law in one sentence.
      run: checks it on a `Case`.
      cost: of a hundred examples, how many are worth their time.
      batch: how many further examples of the same shapes it combines.
    """

    def __init__(self, statement: str, run: Callable[[Case], None], cost: int, batch: int):
        self.name = self.__name__ = run.__name__
        self.__doc__ = run.__doc__
        self.statement = statement
        self.run = run
        self.cost = cost
        self.batch = batch

    def __repr__(self) -> str:
        return f"<law {self.name}: {self.statement}>"

    def __call__(
        self,
        f: Any,
        args: Sequence[Any],
        *,
        static: Static | None = None,
        more: Sequence[Sequence[Any]] = (),
        statics: Sequence[Static] = (),
        seed: int = 0,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> None:
        """Check the law on concrete arguments.

        Args:
          f: a binding.
          args: its positional arguments; 64-bit dtypes are kept, whatever JAX's setting.
          static: its static keywords.
          more: further arguments of the same shapes and dtypes, for laws about batches (they
            make them from ``args`` otherwise).
          statics: several mappings of static keywords, for the law about them.
          seed: of the directions that are drawn.
          rtol, atol: tolerances instead of those that follow from dtype and error estimate.

        Raises:
          LawViolation: if it is broken.
          Skip: if it says nothing about these arguments; the text says why.
        """
        case = Case(
            Subject.of(f),
            tuple(args),
            static,
            more=[tuple(m) for m in more],
            statics=statics,
            seed=seed,
            rtol=rtol,
            atol=atol,
        )
        try:
            self.check(case)
        except LawViolation as violation:
            violation.diagnosis = diagnosis_of(self, violation)
            raise

    def check(self, case: Case) -> None:
        """Check a case, in 64 bits."""
        with jax.enable_x64(True):
            case.must_fit()
        try:
            with jax.enable_x64(True):
                self.run(case)
        except (Skip, LawViolation):
            raise
        except Exception as error:  # a rule may raise anything, also while JAX traces it
            detail = getattr(error, "detail", {})
            text = without_jax(str(error))
            if isinstance(error, (BrokenContract, UserError)):
                text = f"got  {text}"
            elif not isinstance(error, Broken):
                text = f"got  {type(error).__name__}: {text}"
            violation = LawViolation(
                self.name, case.subject.label, self.statement, text, example=case.text()
            )
            violation.case, violation.detail = case, detail
            raise violation from None


def diagnosis_of(
    law: Law, violation: LawViolation, witnesses: Sequence[Case] = ()
) -> Diagnosis | None:
    """What is probably wrong, by the example and others on which the law is broken."""
    from jaxbind.testing import _diagnosis  # it looks at what laws leave, and so at laws

    with jax.enable_x64(True), np.errstate(all="ignore"):
        return _diagnosis.find(law.name, violation, [violation.case, *witnesses])


def law(statement: str, *, cost: int = 100, batch: int = 0) -> Callable[[Callable], Law]:
    """Make a law of a function of a `Case`, which raises `Broken` or `Skip`."""
    return lambda run: Law(statement, run, cost, batch)
