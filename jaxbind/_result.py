"""Matching what a function or rule returned against the structure that was declared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path, tree_structure, tree_unflatten

from jaxbind import _dtypes, _errors
from jaxbind._call import Outputs, PyTreeDef, leaves_up_to

_LEAF = tree_structure(0)


def flatten(tree: PyTreeDef, kept: Sequence[bool], result: Any) -> list[Any]:
    """The kept leaves of ``result``, which must have the structure ``tree``.

    A tuple of one may be given bare, a list stands for a tuple, and ``None`` may stand for
    everything that is not kept.

    Raises:
      TypeError: with what was returned and what was declared.
    """
    if tree == _LEAF:
        leaves = [result]
    elif tree.num_leaves == 0:
        if result is not None and tree_structure(result) != tree:
            raise TypeError(
                f"returned {describe(result)}, but it is declared without results. Return None, or"
                " declare them with out= or a signature"
            )
        return []
    else:
        leaves = _flatten_up_to(tree, result)
    if leaves is None:
        raise TypeError(
            f"returned {describe(result)}, but its declared result is {_expected(tree, kept)}."
            " Return that, or change the signature or out="
        )
    found = [leaf for leaf, k in zip(leaves, kept, strict=True) if k]
    for index, leaf in enumerate(found):
        if leaf is None:
            raise TypeError(
                f"returned None for result {index} of {_expected(tree, kept)}; return an array"
                " for each (a rule zeros for what does not depend on it, or declare the argument"
                " nondiff)"
            )
    return found


def replaced(tree: PyTreeDef, views: Sequence[np.ndarray], out: Any) -> str | None:
    """Where a function has put something else into `out` than the view that it was given."""
    kept = {id(view) for view in views}
    try:
        leaves = leaves_up_to(tree, out)
    except ValueError:
        return ""  # it has other places now
    if kept <= {id(leaf) for leaf in leaves}:
        return None
    places = tree_flatten_with_path(tree_unflatten(tree, range(tree.num_leaves)))[0]
    for (path, _), leaf in zip(places, leaves, strict=True):
        if leaf is not None and id(leaf) not in kept:
            return keystr(path)
    return ""


def _flatten_up_to(tree: PyTreeDef, result: Any) -> list[Any] | None:
    single = tree.node_data()[0] is tuple and len(tree.children()) == 1
    if single and not (isinstance(result, (tuple, list)) and len(result) == 1):
        result = (result,)
    try:
        return leaves_up_to(tree, result)
    except ValueError:
        return None


def _expected(tree: PyTreeDef, kept: Sequence[bool]) -> str:
    if tree == _LEAF:
        return "one array"
    shown = tree_unflatten(tree, [_Word("array" if k else "None") for k in kept])
    return repr(shown)


class _Word(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def describe(value: Any) -> str:
    """A value in a few words: ``float64[3,4]``, ``a tuple of 2``, ``'text' (str)``."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    if value is None:
        return "None"
    return f"{_errors.short_repr(value)} ({type(value).__name__})"


def conform(
    label: str, outputs: Outputs, result: Any, *, exact: bool = False, cotangents: bool = False
) -> list[jax.Array]:
    """The leaves of what a traced rule returned, checked against what they must be.

    Unless ``exact``, derivatives are brought to the precision that is wanted; of ``cotangents``
    that are complex and belong to real operands JAX's are the real part.

    Raises:
      TypeError: naming the rule, what it returned and what was wanted.
    """
    try:
        leaves = flatten(outputs.tree, outputs.kept, result)
    except TypeError as error:
        raise TypeError(f"{label} {error}") from None
    checked = []
    for index, (leaf, struct) in enumerate(zip(leaves, outputs.structs, strict=True)):
        try:
            value = jnp.asarray(leaf)
        except (TypeError, ValueError):
            raise TypeError(
                f"{label} returned {describe(leaf)} for result {index}; wanted {describe(struct)}"
            ) from None
        both = _dtypes.is_inexact(value.dtype) and _dtypes.is_inexact(struct.dtype)
        if cotangents and both and not _dtypes.is_complex(struct.dtype):
            value = jnp.real(value)
        wider = _dtypes.is_complex(value.dtype) and not _dtypes.is_complex(struct.dtype)
        if not exact and both and not wider:
            value = value.astype(struct.dtype)
        elif value.weak_type:
            value = value.astype(struct.dtype)
        if value.shape != struct.shape or value.dtype != struct.dtype:
            raise TypeError(
                f"{label} returned {describe(value)} for result {index}; wanted {describe(struct)}"
            )
        checked.append(value)
    return checked
