"""Call frames: metadata, attributes, errors, state, the floating-point environment."""

from libc.stdint cimport int64_t

from jaxbind._abi cimport (
    JB_Buffer,
    JB_ByteSpan,
    JB_CallFrame,
    JB_Error,
    JB_ExecutionStage_INSTANTIATE,
    JB_Extension_Metadata,
    JB_Metadata,
    JB_Metadata_Extension,
    JB_State_Get_Args,
    JB_TypeId,
)

cdef extern from *:
    """
    /* The control word of the floating-point unit. XLA runs handlers with subnormals flushed to
       zero; a foreign function must see the IEEE default, with no exception flag raised, and XLA
       gets its own back, flags included. It is set without a look at what it was: waiting for that
       takes longer. */
    #if defined(__x86_64__) || defined(_M_X64)
    #include <xmmintrin.h>
    typedef unsigned int jb_fpenv;
    static inline jb_fpenv jb_fp_enter(void) {
        unsigned int now = _mm_getcsr();
        _mm_setcsr(0x1F80u);
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
    void jb_copy_frame(JB_CallFrame* to, const JB_CallFrame* source) noexcept nogil
    const char* jb_buffer_flaw(const JB_Buffer* buffer) noexcept nogil
    JB_Buffer* jb_buffer(const JB_CallFrame* frame, int operands, int i) noexcept nogil
    bint jb_fits(
        const int64_t* known, int operands, int buffers, const JB_CallFrame* frame, char** starts
    ) noexcept nogil

# Whether the frame is only XLA's question for our metadata, which is then answered. ``state``
# is the type of the state that the instantiate stage sets, NULL for a handler without one.
cdef inline bint answered_metadata(JB_CallFrame* frame, JB_TypeId* state) noexcept nogil:
    cdef JB_Metadata_Extension* extension = <JB_Metadata_Extension*>frame.extension_start
    cdef JB_Metadata* metadata
    if extension == NULL or extension.extension_base.type != JB_Extension_Metadata:
        return False
    metadata = extension.metadata
    if metadata == NULL or frame.api == NULL:
        return True
    # The runtime's own version: it refuses any that is newer than it.
    metadata.api_version.major_version = frame.api.api_version.major_version
    metadata.api_version.minor_version = frame.api.api_version.minor_version
    metadata.traits = 0
    if state != NULL:
        metadata.state_type_id = state[0]
    return True

# An error that XLA owns from here on. ``message`` is copied.
cdef JB_Error* make_error(JB_CallFrame* frame, int code, const char* message) noexcept nogil

# The string attribute ``name``, or NULL.
cdef const JB_ByteSpan* string_attribute(JB_CallFrame* frame, const char* name) noexcept nogil

cdef JB_Error* set_state(JB_CallFrame* frame, JB_TypeId* type_id, void* state) noexcept nogil

cdef inline JB_Error* get_state(
    JB_CallFrame* frame, JB_TypeId* type_id, void** state
) noexcept nogil:
    cdef JB_State_Get_Args args
    cdef JB_Error* error
    args.struct_size = sizeof(JB_State_Get_Args)
    args.extension_start = NULL
    args.ctx = frame.ctx
    args.stage = JB_ExecutionStage_INSTANTIATE
    args.type_id = type_id
    args.state = NULL
    error = frame.api.State_Get(&args)
    state[0] = args.state
    return error
