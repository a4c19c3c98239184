"""CUDA's driver, by which calls from a program on a GPU copy operands and results."""

from __future__ import annotations

import ctypes

from jaxbind import _sites

#: as `_device.h` has them
_FUNCTIONS = (
    "cuStreamGetCtx",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuStreamSynchronize",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuGetErrorString",
)
_loaded: list[ctypes.CDLL] = []


def load() -> None:
    """Make the driver known; it is loaded already where there is a program on a GPU.

    Raises:
      LookupError: if there is none.
    """
    if _loaded:
        return
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        functions = [getattr(driver, name) for name in _FUNCTIONS]  # none of them is null
    except (OSError, AttributeError) as error:
        raise LookupError(f"CUDA's driver cannot be loaded ({error})") from None
    _sites.set_driver([ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions])
    _loaded.append(driver)
