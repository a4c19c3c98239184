"""What a function returns: checked against what was declared, and copied into the results."""

from libc.string cimport memcmp

import copy

cimport numpy as cnp

import numpy as np

from jaxbind import _dtypes, _errors, _result

from jaxbind._trees cimport FLAT, SINGLE, Tree
from jaxbind._views cimport Layout, Views, is_shared

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    int PyArray_CopyInto(cnp.ndarray destination, cnp.ndarray source) except -1


cdef class Returns:
    """What was declared of the results.

    Parameters are the pytree of results; which of its leaves are ``kept``, as some stand for no
    result; whether a single result may be wrapped in a tuple (``unwrap``); whether this is a
    derivative's ``rule``, and one that gives ``cotangents``; whether the function takes the
    ``loop`` dimensions itself (``vectorized``).
    """

    def __init__(
        self, Tree tree, tuple kept, *, bint unwrap, bint rule, bint cotangents, bint vectorized,
        int loop,
    ):
        self.tree = tree
        self.kept = kept
        self.all_kept = all(kept)
        self.unwrap = unwrap and tree.shape == SINGLE
        self.rule = rule
        self.cotangents = cotangents
        self.vectorized = vectorized
        self.loop = loop

    cdef int store(self, Views views, value) except -1:
        cdef int i, count = views.count - views.operands
        if self.tree.shape == SINGLE and self.all_kept:
            if self.unwrap and type(value) in (tuple, list) and len(value) == 1:
                value = value[0]
            self.store_one(views, 0, value)
            return 0
        if (
            self.tree.shape == FLAT and self.all_kept and type(value) is tuple
            and len(value) == count and not has_none(value)
        ):
            leaves = value
        else:
            try:
                leaves = _result.flatten(self.tree.treedef, self.kept, value)
            except TypeError as error:
                raise _errors.ContractError(str(error)) from None
        for i in range(count - 1):
            if is_shared(views, views.operands + i):
                leaves = [apart(leaf, views) for leaf in leaves]
                break
        for i in range(count):
            self.store_one(views, i, leaves[i])
        return 0

    cdef int store_one(self, Views views, int index, value) except -1:
        """Check one returned value against what was declared, and copy it into its result."""
        cdef Layout layout = views.layout
        cdef int i = layout.operands + index
        cdef object view = <object>views.items[i]
        cdef object array = value
        if not cnp.PyArray_CheckExact(value):
            array = self.as_array(layout, index, value, view)
        if cnp.PyArray_DESCR(array) is not cnp.PyArray_DESCR(view):
            if array.dtype != view.dtype:
                if (
                    self.rule and _dtypes.is_inexact(array.dtype) and _dtypes.is_inexact(view.dtype)
                    # a tangent, unlike a cotangent, is complex only if its result is
                    and (self.cotangents or _dtypes.is_complex(array.dtype)
                         <= _dtypes.is_complex(view.dtype))
                ):
                    # a rule may compute in another precision, and JAX's cotangent of a real
                    # operand is the real part
                    part = array if _dtypes.is_complex(view.dtype) else array.real
                    array = np.empty(part.shape, view.dtype)
                    convert(array, part)
                elif array.dtype != layout.raw[i]:
                    raise _errors.wrong_dtype(
                        index, layout.count - layout.operands,
                        _result.describe(value), layout.shown(i))
        if not same_shape(array, view):
            if not (self.vectorized and broadcasts(array.shape, view.shape, self.loop)):
                raise _errors.wrong_shape(
                    index, layout.count - layout.operands,
                    _result.describe(value), layout.shown(i), self.rule)
        PyArray_CopyInto(<cnp.ndarray>view, <cnp.ndarray>array)
        return 0

    cdef object as_array(self, Layout layout, int index, value, view):
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise _errors.masked(index, layout.count - layout.operands)
        if value is None or isinstance(value, (str, bytes, dict, set)):
            array = None
        else:
            try:
                array = np.asarray(value)
            except (TypeError, ValueError):
                array = None
        if array is None or array.dtype.kind in "OSUMm":
            raise _errors.not_an_array(
                index, layout.count - layout.operands, _result.describe(value),
                layout.shown(layout.operands + index))
        if isinstance(value, (bool, int, float, complex, list, tuple)) and not isinstance(
            value, np.generic
        ):
            # Python numbers have no precision of their own
            whole = array.dtype.kind in "iu" and view.dtype.kind in "iu"  # NumPy checks the range
            if whole or np.can_cast(array.dtype, view.dtype, "same_kind"):
                return np.asarray(value, view.dtype)
        return array


cdef int convert(target, source) except -1:
    """Copy into another dtype, silently, as JAX converts: an overflow is no fault of a function."""
    with np.errstate(all="ignore"):
        np.copyto(target, source, casting="unsafe")
    return 0


cdef object apart(value, Views views):
    """A returned value that the results do not overwrite while they are stored, one by one.

    With `aliases` a part of an operand, which a function may return, is a part of a result, too.
    """
    if isinstance(value, (list, tuple)):
        return copy.deepcopy(value)
    if not isinstance(value, np.ndarray):
        return value
    overlaps = any([
        np.may_share_memory(value, <object>views.items[i])
        for i in range(views.operands, views.count)])
    return value.copy() if overlaps else value


cdef bint has_none(tuple values):
    for value in values:
        if value is None:
            return True
    return False


cdef bint same_shape(array, view) noexcept:
    cdef int rank = cnp.PyArray_NDIM(view)
    # an array without dimensions has no place for them: memcmp must not be given NULL
    return cnp.PyArray_NDIM(array) == rank and (rank == 0 or memcmp(
        cnp.PyArray_DIMS(array), cnp.PyArray_DIMS(view), rank * sizeof(cnp.npy_intp)) == 0)


cdef bint broadcasts(tuple shape, tuple wanted, int loop):
    """Whether only loop dimensions differ, where ``shape`` has size 1."""
    return len(shape) == len(wanted) and shape[loop:] == wanted[loop:] and all(
        [s == w or s == 1 for s, w in zip(shape[:loop], wanted[:loop])])
