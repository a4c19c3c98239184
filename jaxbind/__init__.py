"""Bind any function to JAX. See `bind`."""

import importlib

from jaxbind import _compiled

if _installed := _compiled.folder(__path__[0], "_version.py"):
    __path__.append(_installed)

from jaxbind import _jax
from jaxbind._bind import bind as bind
from jaxbind._binding import Binding as Binding
from jaxbind._debug import debug as debug
from jaxbind._errors import last_exception as last_exception
from jaxbind._export import export_checks
from jaxbind._handler import Handler as Handler
from jaxbind._include import get_include as get_include
from jaxbind._kernels import Kernel as Kernel
from jaxbind._legacy import get_linear_call as get_linear_call
from jaxbind._legacy import get_nonlinear_call as get_nonlinear_call
from jaxbind._legacy import load_kwargs as load_kwargs
from jaxbind._version import __version__ as __version__

_jax.count_as_own(__path__)


def __getattr__(name: str) -> object:
    if name == "testing":  # which needs Hypothesis
        try:
            return importlib.import_module("jaxbind.testing")
        except ImportError as error:
            raise AttributeError(f"jaxbind.testing cannot be imported: {error}") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Binding",
    "Handler",
    "Kernel",
    "bind",
    "debug",
    "export_checks",
    "get_include",
    "get_linear_call",
    "get_nonlinear_call",
    "last_exception",
    "load_kwargs",
]
