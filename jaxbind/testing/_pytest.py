"""`parametrize`: one pytest item per binding and law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from jaxbind.testing._check import Check
from jaxbind.testing._options import options_for
from jaxbind.testing._report import labels
from jaxbind.testing._subject import Subject
from jaxbind.testing.laws import LAWS


class Shared:
    """One check for all the laws of a binding, so that they share what was compiled."""

    def __init__(self, binding: Any, keywords: Mapping[str, Any]):
        self.binding = binding
        self.keywords = keywords

    @cached_property
    def check(self) -> Check:
        return Check.of(self.binding, self.keywords)


class LawItem:
    """A law of a binding: call it to check it (within pytest)."""

    def __init__(self, shared: Shared, name: str, label: str):
        self.shared = shared
        self.name = name
        self.label = label

    def __repr__(self) -> str:
        return f"<{self.label}: {LAWS[self.name].statement}>"

    def __call__(self) -> None:
        """Raise `LawViolation` if the law is broken; skip the test if it says nothing.

        Raises:
          LawViolation: if it is broken.
        """
        import pytest

        result = self.shared.check.run(LAWS[self.name])
        if result.violation is not None:
            raise result.violation.with_traceback(None) from None
        if result.status == "skipped":
            pytest.skip(result.reason.splitlines()[0])


def parametrize(*bindings: Any, **keywords: Any) -> Callable:
    """A decorator that makes one pytest item per binding and law.

    ``@testing.parametrize(f, g)`` on ``def test_laws(law): law()`` gives ``test_laws[f-abstract]``,
    ``test_laws[f-jvp]``, and so on. Laws that say nothing about a binding are skipped with the
    reason.

    Args:
      bindings: bindings, or pairs of a binding and keywords of `check` for it.
      keywords: those of `check`, for all.

    Raises:
      TypeError: for what is no binding, or an unknown keyword.
    """
    import pytest

    pairs = [b if isinstance(b, tuple) else (b, {}) for b in bindings]
    names = labels([Subject.of(b).label for b, _ in pairs])
    items = []
    for (binding, own), label in zip(pairs, names, strict=True):
        given = {**keywords, **own}
        options = options_for(binding, given)
        asked = LAWS if options.laws is None else options.laws
        chosen = [n for n in LAWS if n in asked and n not in options.skip]
        shared = Shared(binding, given)
        items += [
            pytest.param(LawItem(shared, name, label), id=f"{label}-{name}") for name in chosen
        ]
    return pytest.mark.parametrize("law", items)
