"""Call sites: what XLA owns for each place in a program where a function is called."""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from jaxbind._abi cimport JB_CallFrame, JB_Error

# XLA's pointer to a call site. ``owner`` is the `Site` that it is a part of, ``body`` what a
# compiled call needs of it.
cdef struct SiteHead:
    JB_Error* (*execute)(JB_CallFrame*, SiteHead*) noexcept nogil
    PyObject* owner
    void* body
    bint tokens  # whether a token follows the operands, and the results


# Whether calls are watched (`set_debug`), and the object that watches one, or None.
cdef bint is_watching() noexcept nogil
cdef object watch_call(list names, list operands, list results, bint shared)


# The error of an exception in a function, which is remembered for `jaxbind.last_exception`.
cdef JB_Error* tell(
    JB_CallFrame* frame, str label, list names, list operands, int64_t iteration,
    int64_t iterations, exception, list kept) noexcept


# A pointer to a frame, for a call back.
cdef class Frame:
    cdef JB_CallFrame* frame

    @staticmethod
    cdef Frame of(JB_CallFrame* frame)


cdef class Site:
    cdef SiteHead head
    cdef object __weakref__
