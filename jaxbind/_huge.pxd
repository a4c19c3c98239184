"""Huge pages for large results."""

from libc.stddef cimport size_t

cdef extern from *:
    """
    #if defined(__linux__)
    #include <stdint.h>
    #include <sys/mman.h>
    #endif
    /* XLA hands out fresh pages; touching them for the first time costs more than most
       functions. Large results get huge pages, as NumPy's own allocations do. */
    static inline void JB_ADVISE_HUGE(char *start, size_t size) {
    #if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (size >= ((size_t)1 << 22)) {
            uintptr_t first = ((uintptr_t)start + 4095) & ~(uintptr_t)4095;
            uintptr_t end = ((uintptr_t)start + size) & ~(uintptr_t)4095;
            if (end > first) (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
        }
    #endif
    }
    """
    void JB_ADVISE_HUGE(char* start, size_t size) noexcept nogil
