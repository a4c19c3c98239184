from collections.abc import Callable
from typing import Any

import numpy as np

class CallSite:
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
    ) -> None: ...

def capsules(opener: Callable[[str, str], CallSite]) -> dict[str, dict[str, Any]]: ...
def set_poison(byte: int) -> None: ...
