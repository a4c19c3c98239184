from jaxbind._trees cimport Tree
from jaxbind._views cimport Layout, Views


cdef class Returns:
    cdef Tree tree
    cdef tuple kept
    cdef bint all_kept, unwrap, rule, cotangents, vectorized
    cdef int loop

    cdef int store(self, Views views, value) except -1
    cdef int store_one(self, Views views, int index, value) except -1
    cdef object as_array(self, Layout layout, int index, value, view)


# Copy into another dtype, silently, as JAX converts: an overflow is no fault of a function.
cdef int convert(target, source) except -1
