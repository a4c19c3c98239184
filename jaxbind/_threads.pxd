"""Work on the runtime's threads, and when it is worth it."""

from libc.stdint cimport int64_t

from jaxbind._abi cimport JB_Api, JB_ExecutionContext

cdef extern from "_threads.h" nogil:
    int64_t WORTH_A_THREAD "JB_WORTH_A_THREAD"  # in nanoseconds of one thread
    int64_t jb_now()
    int64_t jb_runtime_threads(const JB_Api*, JB_ExecutionContext*)

    # Chunks 0 to count - 1, by the caller and at most ``helpers`` threads.
    void jb_in_chunks(
        const JB_Api*, JB_ExecutionContext*, int64_t helpers, int64_t count,
        void (*)(void*, int64_t) noexcept, void*)
