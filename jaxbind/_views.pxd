"""What the buffers of a call site look like, and the NumPy arrays over them."""

from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport int64_t

cimport numpy as cnp

from jaxbind._abi cimport JB_Buffer, JB_CallFrame


cdef extern from *:
    """
    #include <string.h>
    #define JB_SET_DATA(array, pointer) (((PyArrayObject_fields *)(array))->data = (pointer))

    #define JB_SET_STRIDES(array, other) \
        memcpy(((PyArrayObject_fields *)(array))->strides, \
               ((PyArrayObject_fields *)(other))->strides, \
               ((PyArrayObject_fields *)(array))->nd * sizeof(npy_intp))

    /* What a function could do to a view that the next call gets again: `x.shape = ...`. */
    typedef struct {
        int nd, flags;
        PyArray_Descr *descr;
        npy_intp *dimensions; /* in one block with the strides; a change of rank moves it */
        npy_intp sizes[128]; /* shape and strides */
    } JB_Mark;
    static inline void JB_MARK(PyObject *array, JB_Mark *mark) {
        PyArrayObject_fields *a = (PyArrayObject_fields *)array;
        mark->nd = a->nd;
        mark->flags = a->flags;
        mark->descr = a->descr;
        mark->dimensions = a->dimensions;
        if (a->nd) memcpy(mark->sizes, a->dimensions, 2 * a->nd * sizeof(npy_intp));
    }
    static inline int JB_CHANGED(PyObject *array, JB_Mark *mark) {
        PyArrayObject_fields *a = (PyArrayObject_fields *)array;
        if (a->nd != mark->nd || a->flags != mark->flags || a->descr != mark->descr
            || a->dimensions != mark->dimensions) return 1;
        if (a->weakreflist != NULL) return 1; /* weak references to it must die, as NumPy's would */
        for (int i = 0; i < 2 * a->nd; i++)
            if (mark->sizes[i] != a->dimensions[i]) return 1;
        return 0;
    }
    """
    ctypedef struct JB_Mark:
        pass
    void JB_SET_STRIDES(PyObject* array, PyObject* other) noexcept
    void JB_SET_DATA(PyObject* array, char* pointer) noexcept
    void JB_MARK(PyObject* array, JB_Mark* mark) noexcept
    bint JB_CHANGED(PyObject* array, JB_Mark* mark) noexcept


cdef class Layout:
    cdef int count, operands, loop
    cdef list specs  # (code, dims) per buffer
    cdef list raw, seen  # dtype of the buffer; dtype that the function sees
    cdef list shapes, steps  # shape and strides of the view that the function gets
    cdef list whole  # for a converted buffer: (shape, strides of the raw buffer), else None
    cdef int64_t* known  # what `jb_fits` compares
    cdef size_t* sizes_in_bytes
    cdef cnp.npy_intp* sizes  # of the loop dimensions that the handler loops over
    cdef cnp.npy_intp* strides
    cdef cnp.npy_intp iterations
    cdef bint converts  # whether any buffer is
    cdef dict keywords  # that the function gets: static parameters, a plan

    cdef bint describes(self, JB_CallFrame* frame) except -1
    cdef str shown(self, int i)


cdef class Views:
    cdef Layout layout
    cdef const int64_t* known  # these as in the layout, which owns what they point to
    cdef int operands, count, loop
    cdef bint converts
    cdef size_t* sizes_in_bytes
    cdef cnp.npy_intp* sizes
    cdef cnp.npy_intp* strides
    cdef cnp.npy_intp iterations
    cdef list arrays
    cdef list keyword_values
    cdef PyObject** items  # borrowed from ``arrays``
    cdef PyObject** argv  # vectorcall arguments (borrowed), the first place reserved
    cdef int out_place  # of `out` among the arguments, 0 where there is none
    cdef PyObject* keyword_names  # borrowed from the call site, or NULL
    cdef JB_Mark* marks  # how the views were made
    cdef char** starts  # where the data of each operand and result start
    cdef char** bases  # and in the current iteration
    cdef cnp.npy_intp* index  # the current loop index

    cdef int renew(self, int i) except -1
    cdef int let_go(self) noexcept


# Strides in bytes: loop dimensions row-major in front, core dimensions in either order.
cdef list buffer_strides(shape, Py_ssize_t loop, Py_ssize_t itemsize, bint fortran)

# An array over memory that is set later (`JB_SET_DATA`) and not owned.
cdef object new_view(cnp.dtype dtype, tuple shape, tuple strides, bint writeable)

# A buffer as one array, in the order of its memory.
cdef object whole_buffer(JB_Buffer* buffer, cnp.dtype dtype)

# Whether a result begins with what an operand holds, as `aliases` have it.
cdef bint is_shared(Views views, int result) noexcept
