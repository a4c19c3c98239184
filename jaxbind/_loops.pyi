from typing import Any

import numpy as np

from jaxbind._attributes import Attributes
from jaxbind._sites import Site

MOST_BUFFERS: int
MOST_AXES: int
MOST_DIMS: int
MOST_SLOTS: int
MOST_INTEGERS: int
MOST_REALS: int

class LoopSite(Site):
    def __init__(
        self,
        *,
        label: str,
        names: list[str],
        owner: Any,
        function: int,
        data: int,
        inner_loop: bool,
        operands: int,
        loop: int,
        codes: list[int],
        cores: list[list[int]],
        dims: int,
        source: list[int],
        fortran: bool,
        slots: list[tuple[int, int, int, bytes]],
        returns: int,
        result_code: int,
        may_raise: bool,
        threads: int,
        attributes: Attributes | None = None,
    ) -> None: ...
    def on_arrays(self, arrays: list[np.ndarray]) -> None: ...

def ufunc_loop(ufunc: np.ufunc, index: int) -> tuple[int, int]: ...
