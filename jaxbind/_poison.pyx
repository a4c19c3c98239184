"""Memory that NumPy hands out filled with a byte of our choice, to find what is never written.

NumPy asks a handler for the data of arrays (NEP 49, "Data allocation strategies"). It is a
context variable, so only the thread and context that sets it are affected.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset, strcpy

cimport numpy as cnp

import threading
from contextlib import contextmanager

from jaxbind import _pycall

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void* ctx
        void* (*malloc)(void* ctx, size_t size)
        void* (*calloc)(void* ctx, size_t count, size_t size)
        void* (*realloc)(void* ctx, void* old, size_t size)
        void (*free)(void* ctx, void* old, size_t size)

    ctypedef struct PyDataMem_Handler:
        char name[127]
        uint8_t version
        PyDataMemAllocator allocator

    object PyDataMem_SetHandler(object handler)

cdef int fill = 0


cdef void* filled_malloc(void* ctx, size_t size) noexcept nogil:
    cdef void* memory = malloc(size if size else 1)
    if memory != NULL:
        memset(memory, fill, size)
    return memory


cdef void* plain_calloc(void* ctx, size_t count, size_t size) noexcept nogil:
    return calloc(count if count else 1, size if size else 1)


cdef void* plain_realloc(void* ctx, void* old, size_t size) noexcept nogil:
    return realloc(old, size if size else 1)


cdef void plain_free(void* ctx, void* old, size_t size) noexcept nogil:
    free(old)


# arrays refer to it as long as they live
cdef PyDataMem_Handler handler
strcpy(handler.name, b"jaxbind_poison")
handler.version = 1
handler.allocator.ctx = NULL
handler.allocator.malloc = filled_malloc
handler.allocator.calloc = plain_calloc
handler.allocator.realloc = plain_realloc
handler.allocator.free = plain_free
cdef object capsule = PyCapsule_New(&handler, b"mem_handler", NULL)

poisoning = threading.RLock()


@contextmanager
def poisoned(int byte):
    """Fill results of bindings, and new NumPy arrays of this thread, with ``byte`` first.

    The byte is the process's: one thread at a time poisons, the others wait. Within itself it
    nests.
    """
    global fill
    with poisoning:
        old_fill = fill
        fill = byte
        old = PyDataMem_SetHandler(capsule)
        old_byte = _pycall.set_poison(byte)
        try:
            yield
        finally:
            _pycall.set_poison(old_byte)
            PyDataMem_SetHandler(old)
            fill = old_fill
