"""What the buffers of a call site look like, and the NumPy arrays over them.

Both are kept between calls: `Layout` is learnt from the first call, and `Views` are re-pointed
to the buffers of the next.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

cimport numpy as cnp

import numpy as np

from jaxbind import _dtypes, _errors

from jaxbind._abi cimport JB_Buffer, JB_CallFrame
from jaxbind._frame cimport jb_fits


cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(
        type subtype, cnp.dtype descr, int nd, const cnp.npy_intp* dims,
        const cnp.npy_intp* strides, void* data, int flags, object obj)
    void PyArray_CLEARFLAGS(cnp.ndarray array, int flags) noexcept

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject*) noexcept

cdef list DTYPES = [_dtypes.CODES.get(code) for code in range(64)]


cdef class Layout:
    """What the buffers of a call site look like; learnt from its first call.

    Buffers are numbered with the operands first. ``strides[i * loop + a]`` is the step in
    bytes of buffer i along loop dimension a: 0 where its size there is 1.
    """

    def __cinit__(self):
        self.known = NULL
        self.sizes_in_bytes = NULL
        self.sizes = NULL
        self.strides = NULL

    def __dealloc__(self):
        free(self.known)
        free(self.sizes_in_bytes)
        free(self.sizes)
        free(self.strides)

    def __init__(
        self, list specs, int operands, *, Py_ssize_t loop, bint vectorized, bint fortran,
        list seen, list declared, dict keywords,
    ):
        cdef int i, a, at = 0
        self.specs = specs
        self.keywords = keywords
        self.count = len(specs)
        self.operands = operands
        self.loop = 0 if vectorized else loop
        self.known = <int64_t*>malloc(
            (sum([3 + len(shape) for _, shape in specs]) + 1) * sizeof(int64_t))
        self.sizes_in_bytes = <size_t*>malloc((self.count + 1) * sizeof(size_t))
        self.sizes = <cnp.npy_intp*>malloc((self.loop + 1) * sizeof(cnp.npy_intp))
        self.strides = <cnp.npy_intp*>malloc((self.count * self.loop + 1) * sizeof(cnp.npy_intp))
        if not (self.known and self.sizes_in_bytes and self.sizes and self.strides):
            raise MemoryError
        self.raw, self.seen, self.shapes, self.steps, self.whole = [], [], [], [], []
        full = [1] * loop
        for i, (code, shape) in enumerate(specs):
            if len(shape) < loop:
                raise _errors.ContractError(f"got a buffer of rank {len(shape)} for {loop} loops")
            for a in range(loop):
                if i < operands and full[a] == 1:
                    full[a] = shape[a]
                elif shape[a] != full[a] and (i >= operands or shape[a] != 1):
                    raise _errors.ContractError(
                        f"got buffers whose loop dimensions {full[a]} and {shape[a]} do not agree")
            raw = DTYPES[code] if 0 <= code < len(DTYPES) else None
            if raw is None:
                raise _errors.ContractError(f"got a buffer of XLA type {code}, unknown to NumPy")
            self.sizes_in_bytes[i] = raw.itemsize
            for a in range(len(shape)):
                self.sizes_in_bytes[i] *= <size_t>shape[a]
            for fact in (code, len(shape), self.sizes_in_bytes[i], *shape):
                self.known[at] = fact
                at += 1
            known = seen[i] if i < operands else declared[i - operands]
            known = raw if known is None else known
            self.raw.append(raw)
            self.seen.append(known)
            steps = buffer_strides(shape, loop, known.itemsize, fortran)
            self.whole.append(
                None if known is raw or known == raw
                else (shape, steps, buffer_strides(shape, loop, raw.itemsize, fortran))
            )
            self.shapes.append(tuple(shape[self.loop:]))
            self.steps.append(tuple(steps[self.loop:]))
            for a in range(self.loop):
                self.strides[i * self.loop + a] = 0 if shape[a] == 1 else steps[a]
        self.converts = any([whole is not None for whole in self.whole])
        self.iterations = 1
        for a in range(self.loop):
            self.sizes[a] = full[a]
            self.iterations *= full[a]

    cdef bint describes(self, JB_CallFrame* frame) except -1:
        """Whether the buffers of a frame are as these."""
        cdef char** starts = <char**>malloc((self.count + 1) * sizeof(char*))
        if starts == NULL:
            raise MemoryError
        cdef bint same = jb_fits(self.known, self.operands, self.count, frame, starts)
        free(starts)
        return same

    cdef str shown(self, int i):
        """The view of buffer i, in errors."""
        return f"{self.seen[i]}[{','.join(map(str, self.shapes[i]))}]"


cdef list buffer_strides(shape, Py_ssize_t loop, Py_ssize_t itemsize, bint fortran):
    """Strides in bytes: loop dimensions row-major in front, core dimensions in either order."""
    strides = [0] * len(shape)
    step = itemsize
    core = range(loop, len(shape))
    for axis in core if fortran else reversed(core):
        strides[axis] = step
        step *= shape[axis]
    for axis in reversed(range(loop)):
        strides[axis] = step
        step *= shape[axis]
    return strides


cdef class Views:
    """The arrays that one caller at a time hands to the function."""

    def __cinit__(self):
        self.items = NULL
        self.argv = NULL
        self.bases = NULL
        self.starts = NULL
        self.index = NULL
        self.marks = NULL

    def __dealloc__(self):
        self.let_go()
        free(self.marks)
        free(self.items)
        free(self.argv)
        free(self.bases)
        free(self.starts)
        free(self.index)

    def __init__(self, Layout layout, tuple keyword_names, bint wants_out):
        cdef list keyword_values = list(layout.keywords.values())
        cdef int i, extra = len(keyword_values) + 1
        self.layout = layout
        self.known, self.operands, self.count = layout.known, layout.operands, layout.count
        self.sizes_in_bytes, self.converts = layout.sizes_in_bytes, layout.converts
        self.loop, self.sizes, self.strides = layout.loop, layout.sizes, layout.strides
        self.iterations = layout.iterations
        self.arrays = []
        self.keyword_values = keyword_values  # ``argv`` points to them
        self.items = <PyObject**>malloc((layout.count + 1) * sizeof(PyObject*))
        self.argv = <PyObject**>malloc((layout.count + extra + 1) * sizeof(PyObject*))
        self.bases = <char**>malloc((layout.count + 1) * sizeof(char*))
        self.starts = <char**>malloc((layout.count + 1) * sizeof(char*))
        self.index = <cnp.npy_intp*>malloc((layout.loop + 1) * sizeof(cnp.npy_intp))
        self.marks = <JB_Mark*>malloc((layout.count + 1) * sizeof(JB_Mark))
        if not (
            self.items and self.argv and self.bases and self.starts and self.index and self.marks
        ):
            raise MemoryError
        self.out_place = 0
        if wants_out and layout.count > layout.operands:
            self.out_place = layout.operands + extra
        for i in range(layout.count):
            self.items[i] = NULL
            self.arrays.append(None)
            self.renew(i)
        # the keywords stay behind the operands, `out` the last of them
        for i in range(extra - 1):
            self.argv[1 + layout.operands + i] = <PyObject*>keyword_values[i]
        self.keyword_names = <PyObject*>keyword_names if keyword_names else NULL

    cdef int let_go(self) noexcept:
        """Give views that somebody still holds, after an error, memory of their own.

        Runs while XLA's buffers are still there: in a call that has failed.
        """
        cdef int i
        if self.arrays is None or self.items == NULL:
            return 0
        for i in range(len(self.arrays)):
            if self.items[i] != NULL and Py_REFCNT(self.items[i]) > 1:
                try:
                    own_memory(self.arrays[i])
                except BaseException:
                    pass
        return 0

    cdef int renew(self, int i) except -1:
        """Make (or replace) the view of buffer i."""
        layout = self.layout
        array = new_view(layout.seen[i], layout.shapes[i], layout.steps[i], i >= layout.operands)
        self.arrays[i] = array
        self.items[i] = <PyObject*>array
        JB_MARK(self.items[i], &self.marks[i])
        if i < layout.operands:
            self.argv[1 + i] = self.items[i]
        elif i == layout.operands and self.out_place:
            self.argv[self.out_place] = self.items[i]
        return 0


cdef int own_memory(array) except -1:
    """Let a view show a copy of what it shows."""
    cdef cnp.ndarray copy
    if cnp.PyArray_BASE(array) != NULL:
        return 0
    copy = np.array(array, order="C")
    JB_SET_DATA(<PyObject*>array, cnp.PyArray_BYTES(copy))
    if copy.ndim:
        JB_SET_STRIDES(<PyObject*>array, <PyObject*>copy)
    cnp.set_array_base(array, copy)
    return 0


cdef object new_view(cnp.dtype dtype, tuple shape, tuple strides, bint writeable):
    """An array over memory that is set later (`JB_SET_DATA`) and not owned."""
    cdef cnp.npy_intp dims[64]
    cdef cnp.npy_intp steps[64]
    cdef int i, rank = len(shape)
    cdef char* placeholder = <char*>dims
    if rank > 64:
        raise _errors.ContractError(f"got an array of {rank} dimensions; NumPy has at most 64")
    for i in range(rank):
        dims[i] = shape[i]
        steps[i] = strides[i]
    Py_INCREF(dtype)  # the array steals a reference
    array = PyArray_NewFromDescr(
        cnp.ndarray, dtype, rank, dims, steps, placeholder, cnp.NPY_ARRAY_WRITEABLE, None)
    if not writeable:
        PyArray_CLEARFLAGS(<cnp.ndarray>array, cnp.NPY_ARRAY_WRITEABLE)
    return array


cdef object whole_buffer(JB_Buffer* buffer, cnp.dtype dtype):
    """A buffer as one array, in the order of its memory."""
    shape = tuple([buffer.dims[a] for a in range(buffer.rank)])
    strides = buffer_strides(shape, 0, dtype.itemsize, False)
    array = new_view(dtype, shape, tuple(strides), True)
    JB_SET_DATA(<PyObject*>array, <char*>buffer.data)
    return array


cdef bint is_shared(Views views, int result) noexcept:
    cdef int i
    for i in range(views.operands):
        if views.starts[i] == views.starts[result] and views.sizes_in_bytes[result] > 0:
            return True
    return False
