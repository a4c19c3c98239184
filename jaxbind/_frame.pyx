"""Call frames: metadata, attributes, errors, and calls in flight."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libc.string cimport memcmp, strlen
from posix.unistd cimport sleep

import atexit
import time

from jaxbind.xla_ffi cimport (
    JB_ArgType_BUFFER,
    JB_AttrType_STRING,
    JB_Buffer,
    JB_ByteSpan,
    JB_CallFrame,
    JB_Error,
    JB_Error_Code,
    JB_Error_Create_Args,
    JB_ExecutionStage_INSTANTIATE,
    JB_Extension_Metadata,
    JB_Metadata,
    JB_Metadata_Extension,
    JB_RetType_BUFFER,
    JB_State_Get_Args,
    JB_State_Set_Args,
    JB_TypeId,
)

cdef extern from *:
    """
    #include <stdatomic.h>
    static atomic_long jb_in_flight;
    static atomic_int jb_leaving;
    static inline void jb_add(long n) { atomic_fetch_add(&jb_in_flight, n); }
    static inline long jb_count(void) { return atomic_load(&jb_in_flight); }
    static inline int jb_is_leaving(void) { return atomic_load(&jb_leaving); }
    static unsigned long jb_leaver;
    static inline void jb_set_leaving(void) {
        jb_leaver = PyThread_get_thread_ident();
        atomic_store(&jb_leaving, 1);
    }
    /* Whether this is a daemon thread of Python's that goes on while the interpreter leaves. It
       would be killed on its way back, inside of XLA's frames, and take the process with it. */
    static inline int jb_is_stray(void) {
        return atomic_load(&jb_leaving) && PyGILState_GetThisThreadState() != NULL
            && PyThread_get_thread_ident() != jb_leaver;
    }
    """
    int jb_is_stray() noexcept nogil
    void jb_add(long n) noexcept nogil
    long jb_count() noexcept nogil
    int jb_is_leaving() noexcept nogil
    void jb_set_leaving() noexcept nogil


cdef bint answered_metadata(JB_CallFrame* frame, JB_TypeId* state) noexcept nogil:
    cdef JB_Metadata_Extension* extension = <JB_Metadata_Extension*>frame.extension_start
    cdef JB_Metadata* metadata
    if extension == NULL or extension.extension_base.type != JB_Extension_Metadata:
        return False
    metadata = extension.metadata
    # The runtime's own version: it refuses any that is newer than it.
    metadata.api_version.major_version = frame.api.api_version.major_version
    metadata.api_version.minor_version = frame.api.api_version.minor_version
    metadata.traits = 0
    if state != NULL:
        metadata.state_type_id = state[0]
    return True


cdef JB_Error* make_error(JB_CallFrame* frame, int code, const char* message) noexcept nogil:
    cdef JB_Error_Create_Args args
    args.struct_size = sizeof(JB_Error_Create_Args)
    args.extension_start = NULL
    args.message = message
    args.errc = <JB_Error_Code>code
    return frame.api.Error_Create(&args)


cdef const JB_ByteSpan* string_attribute(JB_CallFrame* frame, const char* name) noexcept nogil:
    cdef size_t length = strlen(name)
    cdef const JB_ByteSpan* key
    cdef int64_t i
    for i in range(frame.attrs.size):
        key = frame.attrs.names[i]
        if (
            frame.attrs.types[i] == JB_AttrType_STRING
            and key.len == length
            and memcmp(key.ptr, name, length) == 0
        ):
            return <const JB_ByteSpan*>frame.attrs.attrs[i]
    return NULL


cdef JB_Error* set_state(JB_CallFrame* frame, JB_TypeId* type_id, void* state) noexcept nogil:
    cdef JB_State_Set_Args args
    args.struct_size = sizeof(JB_State_Set_Args)
    args.extension_start = NULL
    args.ctx = frame.ctx
    args.stage = JB_ExecutionStage_INSTANTIATE
    args.type_id = type_id
    args.state = state
    return frame.api.State_Set(&args)


cdef JB_Error* get_state(JB_CallFrame* frame, JB_TypeId* type_id, void** state) noexcept nogil:
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


cdef JB_Buffer* operand(JB_CallFrame* frame, int64_t index) noexcept nogil:
    if frame.args.types[index] != JB_ArgType_BUFFER:
        return NULL
    return <JB_Buffer*>frame.args.args[index]


cdef JB_Buffer* result(JB_CallFrame* frame, int64_t index) noexcept nogil:
    if frame.rets.types[index] != JB_RetType_BUFFER:
        return NULL
    return <JB_Buffer*>frame.rets.rets[index]


cdef bint enter_call() noexcept nogil:
    jb_add(1)
    if jb_is_leaving():
        leave_call()
        return False
    return True


cdef void leave_call() noexcept nogil:
    jb_add(-1)
    while jb_is_stray():
        sleep(3600)  # until the process ends


cdef bint is_leaving() noexcept nogil:
    return jb_is_leaving()


def drain():
    """Refuse new calls and wait, without the GIL, until those in flight have ended.

    Runs when the interpreter leaves: a call that took the GIL after that would hang or abort
    the process.
    """
    jb_set_leaving()
    while jb_count() > 0:
        time.sleep(0.0005)


atexit.register(drain)
