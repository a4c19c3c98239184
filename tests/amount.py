"""How much is tried: everything by the usual and the slow tests together, a part by the usual."""

from collections.abc import Iterable
from typing import Any

import pytest


def every(n: int, cases: Iterable[Any]) -> list[Any]:
    """Parameters of which every ``n``-th is tried always, the others by ``pytest -m slow`` only."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow if i % n else ()
        )
        for i, case in enumerate(cases)
    ]
