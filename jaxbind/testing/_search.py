"""`Search`: Hypothesis looks for an example on which a law is broken, and shrinks it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import hypothesis
import hypothesis.strategies as st
from hypothesis import Phase, settings
from hypothesis.strategies import SearchStrategy

from jaxbind.testing._arrays import EVERYTHING, unnested
from jaxbind.testing._case import Case
from jaxbind.testing._subject import Static
from jaxbind.testing._violation import Inapplicable, LawViolation, Skip
from jaxbind.testing.laws import Law

if TYPE_CHECKING:
    from jaxbind.testing._check import Check


class Search:
    """Looks for an example on which a law is broken, part by part."""

    def __init__(self, run: Check, law: Law):
        self.check = run
        self.law = law
        self.said = 0
        self.skips: list[str] = []
        self.inapplicable = False
        self.violations: list[LawViolation] = []
        self.witnesses: list[Case] = []

    def run(
        self, static: Static, groups: SearchStrategy[list[tuple]], count: int, part: int
    ) -> None:
        def find() -> None:
            @hypothesis.seed((self.check.seed + part) ^ zlib.crc32(self.law.name.encode()))
            @settings(
                max_examples=count,
                database=None,
                deadline=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=EVERYTHING,
                report_multiple_bugs=False,
                print_blob=False,
            )
            @hypothesis.given(cases_of(self.check, static, groups))
            def search(case: Case) -> None:
                self.try_on(case)

            search()

        try:
            unnested(find)
        except LawViolation:
            pass
        except Exception as error:
            if not self.violations:  # otherwise the function is not deterministic
                error.__notes__ = []
                raise

    def try_on(self, case: Case) -> None:
        if self.inapplicable:
            return
        try:
            self.law.check(case)
            self.said += 1
            self.check.remember(case)
        except Inapplicable as skip:
            self.skips.append(str(skip))
            self.inapplicable = True
        except Skip as skip:
            self.skips.append(str(skip))
        except LawViolation as violation:
            self.violations.append(violation)
            if len(self.witnesses) < 40:
                self.witnesses.append(case)
            raise


@st.composite
def cases_of(
    draw: Callable, run: Check, static: Static, groups: SearchStrategy[list[tuple]]
) -> Case:
    rows = draw(groups)
    return Case(
        run.subject,
        rows[0],
        static,
        more=rows[1:],
        statics=run.statics,
        elsewhere=run.elsewhere(rows[0]),
        free=run.options.inputs is None and run.options.elements is None,
        narrow=run.narrow,
        kinds=run.kinds,
        seed=draw(_SEEDS),
        rtol=run.options.rtol,
        atol=run.options.atol,
    )


_SEEDS = st.integers(0, 2**20)
