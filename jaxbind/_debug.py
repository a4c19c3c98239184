"""`debug`: check what every call reads and writes."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from jaxbind import _sites
from jaxbind._errors import ContractError

#: with what results are filled before a call, and again where that may be a coincidence
POISON = (0xA5, 0x5A)
FOUND = "found by jaxbind.debug"


@contextmanager
def debug(*, finite: bool = False) -> Iterator[None]:
    """Check every call of every binding in this block, whatever thread it runs on.

    Results are filled with a pattern before each call, so that elements that the function does not
    write are found; operands are compared with what they were. Both are errors that name the
    binding and the element, when JAX raises what went wrong in a call: at the call, or where its
    result is waited for. Programs that are compiled already are checked as well. It costs a pass
    or two over all operands and results; where an element looks as if it was not written, the
    function is called once more, unless it has an ``effect``. The end of the block waits for the
    calls that began in it.

    Args:
      finite: also refuse results that are infinite or NaN where all operands are finite.

    Raises:
      jax.errors.JaxRuntimeError: in the block, of a call that broke its contract.
    """
    _enter(finite)
    try:
        yield
        found = _wait()
    except BaseException:
        _wait()
        raise
    finally:
        _leave(finite)
    if found is not None:
        raise found


_blocks: list[bool] = []  # that are open, in whatever threads, and whether they want finite results
_changing = threading.Lock()


def _enter(finite: bool) -> None:
    with _changing:
        _blocks.append(finite)
        _sites.set_debug(Watch, any(_blocks))


def _leave(finite: bool) -> None:
    with _changing:
        _blocks.remove(finite)
        _sites.set_debug(Watch if _blocks else None, any(_blocks))


def _wait() -> Exception | None:
    """Wait for the calls that are in flight; what was found in those nobody has waited for."""
    found = None
    for x in jax.live_arrays():
        try:
            if not x.is_deleted():
                x.block_until_ready()
        except jax.errors.JaxRuntimeError as error:
            found = error if FOUND in str(error) else found
    return found


class Watch:
    """One call under observation."""

    def __init__(
        self,
        names: Sequence[str],
        operands: Sequence[np.ndarray],
        results: Sequence[np.ndarray],
        shared: bool,
        finite: bool,
    ):
        self.names = names
        self.operands = operands
        self.results = results
        self.finite = finite
        self.shared = shared  # results begin with what operands held
        self.before = [_checksum(x) for x in operands]
        self.fill(POISON[0])

    def fill(self, byte: int) -> None:
        if not self.shared:
            for x in self.results:
                _bytes(x)[...] = byte

    def check(self, again: Callable[[], None] | None) -> None:
        """Compare with what was before; ``again`` calls once more, ``None`` where nobody may.

        Raises:
          ContractError: saying which operand or element it is.
        """
        if not self.shared:
            self._check_operands()
            suspects = [_filled(x, POISON[0]) for x in self.results]
            if any(s.any() for s in suspects):
                self._check_written(suspects, again)
        self._check_finite()

    def _check_written(
        self, suspects: Sequence[np.ndarray], again: Callable[[], None] | None
    ) -> None:
        """Tell elements that were not written from those that are like our pattern."""
        if again is None:  # by size: four bytes are hardly so by chance
            missing = [s & (x.itemsize >= 4) for s, x in zip(suspects, self.results, strict=True)]
            return self._refuse_missing(missing)
        kept = [x.copy() for x in self.results]
        self.fill(POISON[1])
        again()
        pairs = zip(suspects, self.results, strict=True)
        self._refuse_missing([s & _filled(x, POISON[1]) for s, x in pairs])
        for x, value in zip(self.results, kept, strict=True):
            _bytes(x)[...] = _bytes(value)

    def _refuse_missing(self, missing: Sequence[np.ndarray]) -> None:
        for index, (x, lacks) in enumerate(zip(self.results, missing, strict=True)):
            where = np.argwhere(lacks)
            if len(where):
                raise ContractError(
                    f"did not write {_place(index, len(self.results), where[0])} (and"
                    f" {len(where) - 1} more of {x.size}), {FOUND}. Write every element of it"
                )

    def _check_operands(self) -> None:
        for name, x, before in zip(self.names, self.operands, self.before, strict=True):
            if _checksum(x) != before:
                raise ContractError(
                    f"changed {name}, {FOUND}. Operands belong to JAX: work on a copy, or"
                    " declare aliases= (inout= of a Kernel)"
                )

    def _check_finite(self) -> None:
        if not self.finite or not all(map(_is_finite, self.operands)):
            return
        for index, x in enumerate(self.results):
            if not _is_finite(x):
                wrong = np.argwhere(~np.isfinite(x.astype(_wide(x))))
                raise ContractError(
                    f"gave {x[tuple(wrong[0])]} in {_place(index, len(self.results), wrong[0])}"
                    f" from finite operands, {FOUND}(finite=True)"
                )


def _place(index: int, count: int, where: Any) -> str:
    name = "its result" if count == 1 else f"its result {index}"
    return f"element {[int(i) for i in where]} of {name}"


def _bytes(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1).view(np.uint8)


def _checksum(x: np.ndarray) -> int:
    return zlib.crc32(_bytes(np.ascontiguousarray(x)).tobytes())


def _filled(x: np.ndarray, byte: int) -> np.ndarray:
    """Which elements consist of this byte alone."""
    raw = _bytes(x).reshape(x.size, x.dtype.itemsize)
    return np.all(raw == byte, axis=-1).reshape(x.shape)


def _wide(x: np.ndarray) -> type:
    return complex if x.dtype.kind == "c" else float


def _is_finite(x: np.ndarray) -> bool:
    if x.dtype.kind in "iub":
        return True
    return bool(np.all(np.isfinite(x.astype(_wide(x)))))
