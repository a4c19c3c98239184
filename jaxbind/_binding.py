"""`Binding`: a foreign function as a JAX function."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

import jax
import numpy as np
from jax.tree_util import tree_flatten

from jaxbind import _dtypes, _errors, _identity, _jax
from jaxbind._declare import Declarations
from jaxbind._declare_calls import CallDeclarations
from jaxbind._definition import Definition, EagerCalls, kept
from jaxbind._static import Static


@_identity.names_bindings
class Binding(Declarations, CallDeclarations):
    """A foreign function that JAX can call, differentiate, map, compile and shard.

    Made by `jaxbind.bind`; call it like the function itself, with JAX or NumPy arrays.

    Attributes:
      function: what was bound (``None`` for a derivative without a rule over NumPy arrays).
    """

    def __init__(self, definition: Definition):
        self.definition = definition
        self.__name__ = definition.label.rpartition(".")[2]
        self.__qualname__ = definition.qualname or self.__name__
        self.__module__ = definition.module
        self.__doc__ = getattr(definition.function, "__doc__", None)
        if definition.parent is None:
            with contextlib.suppress(TypeError, ValueError):  # not all callables have one
                found = inspect.signature(definition.function)
                shown = [p for p in found.parameters.values() if p.name != "out"]
                self.__signature__ = found.replace(parameters=shown)
        self._derivatives: dict[Definition, Binding] = {}
        self._compiled: dict[Static, Callable] = {}
        self._eager_calls = EagerCalls()
        if definition.bound is None or definition.bound() is None:
            definition.bound = ref(self._eager_calls)
        self._plain: Any = None
        self._plain_count = -1

    @property
    def function(self) -> Any:
        """What was bound."""
        return self.definition.function

    def __repr__(self) -> str:
        return f"<jaxbind.Binding {self.definition.label}>"

    def __copy__(self) -> Binding:
        return self

    def __deepcopy__(self, memo: dict) -> Binding:
        return self  # as functions are

    def __reduce__(self) -> tuple:
        name = _identity.path_to(self.definition)
        if name is None:
            raise TypeError(
                f"cannot pickle {self!r}: it is no module-level name. Define it at the top of an"
                " importable module"
            )
        return _identity.find_binding, (name,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function.

        Args:
          args: the operands: JAX or NumPy arrays, Python numbers (of the precision of the others),
            or pytrees of them. With a signature, dimensions in front of its core dimensions are
            loop dimensions, which broadcast over all operands.
          kwargs: the static parameters (hashable), and operands by name.

        Returns:
          The result in the declared structure: JAX arrays of the declared dtypes, of shape
          ``loop + core``. The call is asynchronous where JAX's calls are.

        Raises:
          TypeError: at once, or while tracing: for a wrong number of operands; an unknown, missing
            or unhashable keyword; a dtype that cannot cross; a result without declared shape.
          ValueError: alike, for core dimensions that contradict the signature, loop dimensions
            that do not broadcast.
          jax.errors.JaxRuntimeError: when the function runs, and so perhaps where the result is
            waited for, if it raises, or returns something else than was declared; the exception
            itself is its cause, or `jaxbind.last_exception`.
        """
        if not kwargs and len(args) == self._plain_count:  # the shortest path of eager calls
            concrete = _jax.concrete_array()
            for operand in args:
                if type(operand) is not concrete:
                    break
            else:
                try:
                    return self._plain(*args)
                except (RuntimeError, ValueError) as error:
                    raise _errors.with_cause(error)  # noqa: B904
        operands, static = self.definition.calling.bind(self.definition.label, args, kwargs)
        if self._traced_now(operands):
            return self.definition.apply(static, *operands)
        try:
            return self._compiled_for(static)(*operands)
        except (RuntimeError, ValueError) as error:
            raise _errors.with_cause(error)  # noqa: B904

    def _compiled_for(self, static: Static) -> Callable:
        """Eager calls go through one ``jax.jit`` per static parameters: JAX's own fast path."""
        found = self._compiled.get(static)
        if found is None:
            _jax.concrete_array()  # which compiles something: not later, in a child of fork
            fresh = jax.jit(partial(self.definition.apply, static), inline=True)
            found = kept(self._compiled, static, fresh)
            if not static.values:
                self._plain = found
                self._plain_count = len(self.definition.calling.operands)
        return found

    def _traced_now(self, operands: tuple) -> bool:
        """Check the leaves of a call that is not on concrete arrays alone."""
        leaves, tree = tree_flatten(operands)
        traced = False
        for index, leaf in enumerate(leaves):
            if _jax.is_tracer(leaf):
                traced = True
            elif isinstance(leaf, (np.ndarray, np.generic)):
                if leaf.dtype != jax.dtypes.float0:  # a tangent, which may be given
                    what = self.definition.operand_name(tree, index)
                    _dtypes.check(self.definition.label, what, leaf.dtype)
            elif isinstance(leaf, int):
                what = self.definition.operand_name(tree, index)
                self.definition.check_integer(what, index, leaf)
            elif not (
                isinstance(leaf, (float, complex, jax.Array))
                or all(hasattr(leaf, name) for name in ("shape", "dtype", "__array__"))
            ):
                if hasattr(leaf, "__jax_array__"):
                    continue
                raise TypeError(
                    f"{self.definition.label}: {self.definition.operand_name(tree, index)} is a"
                    f" {type(leaf).__name__}; operands are arrays, numbers, or tuples, lists and"
                    " dicts of them. Other values can be static, keyword-only parameters"
                )
        return traced
