"""Call frames: attributes, errors, and the state of a call site."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libc.string cimport memcmp, strlen

from jaxbind._abi cimport (
    JB_AttrType_STRING,
    JB_ByteSpan,
    JB_CallFrame,
    JB_Error,
    JB_Error_Code,
    JB_Error_Create_Args,
    JB_ExecutionStage_INSTANTIATE,
    JB_State_Set_Args,
    JB_TypeId,
)

cdef JB_Error* make_error(JB_CallFrame* frame, int code, const char* message) noexcept nogil:
    cdef JB_Error_Create_Args args
    if frame.api == NULL:
        return NULL  # then there is nobody to tell
    args.struct_size = sizeof(JB_Error_Create_Args)
    args.extension_start = NULL
    args.message = message
    args.errc = <JB_Error_Code>code
    return frame.api.Error_Create(&args)


cdef const JB_ByteSpan* string_attribute(JB_CallFrame* frame, const char* name) noexcept nogil:
    cdef size_t length = strlen(name)
    cdef const JB_ByteSpan* key
    cdef JB_ByteSpan* value
    cdef int64_t i
    if frame.attrs.types == NULL or frame.attrs.names == NULL or frame.attrs.attrs == NULL:
        return NULL
    for i in range(frame.attrs.size):
        key = frame.attrs.names[i]
        if (
            frame.attrs.types[i] == JB_AttrType_STRING
            and key != NULL
            and key.ptr != NULL
            and key.len == length
            and memcmp(key.ptr, name, length) == 0
        ):
            value = <JB_ByteSpan*>frame.attrs.attrs[i]
            return NULL if value == NULL or value.ptr == NULL else value
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
