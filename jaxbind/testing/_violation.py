"""What a broken law raises, and how it reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Diagnosis:
    """What is probably wrong with a rule.

    Attributes:
      kind: one word: conjugate, factor, swapped, missing_term, transposed, wrong_point,
        output_returned, stale, loop_axis, single_precision, inverted, static_ignored,
        cotangent_ignored.
      text: what was found, and what to do about it.
    """

    kind: str
    text: str


class LawViolation(AssertionError):
    """A binding breaks a law.

    Attributes:
      law: the law's name.
      binding: the binding's name.
      example: the shortest call that was found, as text.
      found: what differs, as text.
      diagnosis: what is probably wrong, or ``None``.
      statement: the law in one sentence.
      reproduce: how to find the same example again, or ``None``.
    """

    __module__ = "jaxbind.testing"

    def __init__(
        self,
        law: str,
        binding: str,
        statement: str,
        found: str,
        *,
        example: str = "",
        diagnosis: Diagnosis | None = None,
        reproduce: str | None = None,
    ):
        super().__init__(law, binding, found)
        self.law = law
        self.binding = binding
        self.statement = statement
        self.found = found
        self.example = example
        self.diagnosis = diagnosis
        self.reproduce = reproduce
        self.case: Any = None  # the example itself, and what a diagnosis needs to know
        self.detail: dict[str, Any] = {}

    def __reduce__(self) -> tuple:
        """Without the example itself, which holds the binding."""
        keywords = {
            "example": self.example,
            "diagnosis": self.diagnosis,
            "reproduce": self.reproduce,
        }
        made = partial(LawViolation, **keywords)
        return made, (self.law, self.binding, self.statement, self.found)

    def __str__(self) -> str:
        lines = [f"{self.binding} violates `{self.law}`: {self.statement}"]
        if self.example:
            lines.append(f"at   {self.example}")
        lines.append(self.found)
        if self.diagnosis is not None:
            lines.append(self.diagnosis.text)
        if self.reproduce:
            lines.append(f"reproduce: {self.reproduce}")
        first, *rest = "\n".join(lines).split("\n")
        return "\n".join([first, *(f"  {line}" for line in rest)])


class Skip(Exception):
    """A law says nothing here; the text says why."""


class Inapplicable(Skip):
    """A law says nothing about this binding, whatever the arguments."""
