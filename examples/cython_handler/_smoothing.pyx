# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""An XLA handler in Cython: recursive (exponential) smoothing, forwards or backwards in time."""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t

from jaxbind cimport xla_ffi
from jaxbind.xla_ffi cimport JB_CallFrame, JB_Error


cdef JB_Error* smooth(JB_CallFrame* frame) noexcept nogil:
    """y[i] = alpha x[i] + (1 - alpha) y[i - 1]; backwards, if asked, from the end."""
    cdef double* x
    cdef double* y
    cdef int64_t i, n, last
    cdef double alpha, state = 0
    if xla_ffi.answered_metadata(frame):
        return NULL
    x = xla_ffi.float64(xla_ffi.operand(frame, 0))
    y = xla_ffi.float64(xla_ffi.result(frame, 0))
    if x == NULL or y == NULL or xla_ffi.operand(frame, 0).rank != 1:
        return xla_ffi.error(frame, b"smooth: x and y must be vectors of float64")
    alpha = xla_ffi.float64_attribute(frame, b"alpha", 0.5)
    if not 0 < alpha <= 1:
        return xla_ffi.error(frame, b"smooth: alpha must be above 0 and at most 1")
    n = xla_ffi.size(xla_ffi.operand(frame, 0))
    last = n - 1
    if xla_ffi.int64_attribute(frame, b"backwards", 0):
        for i in range(last, -1, -1):
            state = alpha * x[i] + (1 - alpha) * state
            y[i] = state
    else:
        for i in range(n):
            state = alpha * x[i] + (1 - alpha) * state
            y[i] = state
    return NULL


cdef JB_Error* centre(JB_CallFrame* frame) noexcept nogil:
    """Subtract the mean of each column of a matrix, through typed memoryviews."""
    if xla_ffi.answered_metadata(frame):
        return NULL
    return centre_with_gil(frame)


cdef JB_Error* centre_with_gil(JB_CallFrame* frame) noexcept with gil:
    cdef double[:, ::1] x, y
    cdef Py_ssize_t i, j
    cdef double mean
    try:
        x = xla_ffi.float64_matrix(xla_ffi.operand(frame, 0))
        y = xla_ffi.float64_matrix(xla_ffi.result(frame, 0))
    except TypeError:
        return xla_ffi.error(frame, b"centre: x and y must be matrices of float64")
    for j in range(x.shape[1]):
        mean = 0
        for i in range(x.shape[0]):
            mean += x[i, j] / x.shape[0]
        for i in range(x.shape[0]):
            y[i, j] = x[i, j] - mean
    return NULL


smooth_handler = PyCapsule_New(<void*>smooth, NULL, NULL)
centre_handler = PyCapsule_New(<void*>centre, NULL, NULL)
