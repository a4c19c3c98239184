from collections.abc import Callable
from typing import Any

import numpy as np

from jaxbind._sites import Site

class CallSite(Site):
    def __init__(
        self,
        *,
        function: Callable[..., Any],
        label: str,
        names: list[str],
        keywords: dict[str, Any],
        wants_out: bool,
        loop: int,
        vectorized: bool,
        fortran: bool,
        tree: Any,
        result: Any,
        unwrap: bool,
        rule: bool,
        kept: tuple[bool, ...],
        seen: list[np.dtype | None],
        declared: list[np.dtype | None],
        threads: int = 1,
        guard: tuple[Callable[[], Any], Callable[[Any], None]] | tuple[()] = (),
        make_plan: Callable[[list[Any]], Any] | None = None,
    ) -> None: ...

def set_poison(byte: int) -> int: ...
