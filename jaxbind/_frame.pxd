"""Call frames: metadata, attributes, errors, the floating-point environment, calls in flight."""

from libc.stdint cimport int64_t

from jaxbind._abi cimport (
    JB_ArgType_BUFFER,
    JB_Buffer,
    JB_ByteSpan,
    JB_CallFrame,
    JB_Error,
    JB_RetType_BUFFER,
    JB_TypeId,
)

cdef extern from *:
    """
    /* The control word of the floating-point unit. XLA runs handlers with subnormals flushed to
       zero; a foreign function must see the IEEE default, and XLA gets its own back. The sticky
       exception flags are left alone. */
    #if defined(__x86_64__) || defined(_M_X64)
    #include <xmmintrin.h>
    typedef unsigned int jb_fpenv;
    #define JB_FP_DEFAULT 0x1F80u
    #define JB_FP_FLAGS 0x3Fu
    static inline jb_fpenv jb_fp_enter(void) {
        unsigned int now = _mm_getcsr();
        if ((now & ~JB_FP_FLAGS) != JB_FP_DEFAULT) _mm_setcsr(JB_FP_DEFAULT | (now & JB_FP_FLAGS));
        return now;
    }
    static inline void jb_fp_leave(jb_fpenv saved) { _mm_setcsr(saved); }
    #elif defined(__aarch64__) && defined(__GNUC__)
    #include <stdint.h>
    typedef uint64_t jb_fpenv;
    static inline jb_fpenv jb_fp_enter(void) {
        uint64_t now;
        __asm__ __volatile__("mrs %0, fpcr" : "=r"(now));
        if (now) __asm__ __volatile__("msr fpcr, %0" : : "r"((uint64_t)0));
        return now;
    }
    static inline void jb_fp_leave(jb_fpenv saved) {
        __asm__ __volatile__("msr fpcr, %0" : : "r"(saved));
    }
    #else
    #include <fenv.h>
    typedef fenv_t jb_fpenv;
    static inline jb_fpenv jb_fp_enter(void) {
        fenv_t saved;
        fegetenv(&saved);
        fesetenv(FE_DFL_ENV);
        return saved;
    }
    static inline void jb_fp_leave(jb_fpenv saved) { fesetenv(&saved); }
    #endif
    """
    ctypedef unsigned long jb_fpenv
    jb_fpenv jb_fp_enter() noexcept nogil
    void jb_fp_leave(jb_fpenv saved) noexcept nogil


cdef extern from "_sound.h":
    const char* jb_frame_flaw(const JB_CallFrame* frame) noexcept nogil
    const char* jb_buffer_flaw(const JB_Buffer* buffer) noexcept nogil
    bint jb_is_there(const JB_Buffer* buffer, int64_t bytes) noexcept nogil

# Whether the frame is only XLA's question for our metadata, which is then answered. ``state``
# is the type of the state that the instantiate stage sets, NULL for a handler without one.
cdef bint answered_metadata(JB_CallFrame* frame, JB_TypeId* state) noexcept nogil

# An error that XLA owns from here on. ``message`` is copied.
cdef JB_Error* make_error(JB_CallFrame* frame, int code, const char* message) noexcept nogil

# The string attribute ``name``, or NULL.
cdef const JB_ByteSpan* string_attribute(JB_CallFrame* frame, const char* name) noexcept nogil

cdef JB_Error* set_state(JB_CallFrame* frame, JB_TypeId* type_id, void* state) noexcept nogil
cdef JB_Error* get_state(JB_CallFrame* frame, JB_TypeId* type_id, void** state) noexcept nogil

# Buffer descriptors of operands and results; NULL if XLA passes something else.
cdef inline JB_Buffer* operand(JB_CallFrame* frame, int64_t index) noexcept nogil:
    if frame.args.types[index] != JB_ArgType_BUFFER:
        return NULL
    return <JB_Buffer*>frame.args.args[index]

cdef inline JB_Buffer* result(JB_CallFrame* frame, int64_t index) noexcept nogil:
    if frame.rets.types[index] != JB_RetType_BUFFER:
        return NULL
    return <JB_Buffer*>frame.rets.rets[index]

# Calls in flight: false after the interpreter has begun to leave.
cdef bint enter_call() noexcept nogil
cdef void leave_call() noexcept nogil
cdef JB_Error* refuse(JB_CallFrame* frame) noexcept nogil  # a call, for that reason
cdef bint is_leaving() noexcept nogil
