"""For handlers of one's own in Cython: the FFI's structs, and what handlers need.

``from jaxbind cimport xla_ffi``, with ``jaxbind.get_include()`` among the include folders. See
``examples/cython_handler``.
"""

from libc.stddef cimport size_t
from libc.stdint cimport (
    int8_t,
    int16_t,
    int32_t,
    int64_t,
    uint8_t,
    uint16_t,
    uint32_t,
)
from libc.string cimport memcmp, strlen

from jaxbind._abi cimport *

# Whether XLA only asks for the version of a handler, which is then answered: return NULL. The
# first thing that a handler does.
cdef inline bint answered_metadata(JB_CallFrame* frame) noexcept nogil:
    cdef JB_Metadata_Extension* extension = <JB_Metadata_Extension*>frame.extension_start
    if extension == NULL or extension.extension_base.type != JB_Extension_Metadata:
        return False
    extension.metadata.api_version.major_version = frame.api.api_version.major_version
    extension.metadata.api_version.minor_version = frame.api.api_version.minor_version
    return True

# Operand or result ``index``; NULL if there is none.
cdef inline JB_Buffer* operand(JB_CallFrame* frame, int64_t index) noexcept nogil:
    if not 0 <= index < frame.args.size or frame.args.types[index] != JB_ArgType_BUFFER:
        return NULL
    return <JB_Buffer*>frame.args.args[index]

cdef inline JB_Buffer* result(JB_CallFrame* frame, int64_t index) noexcept nogil:
    if not 0 <= index < frame.rets.size or frame.rets.types[index] != JB_RetType_BUFFER:
        return NULL
    return <JB_Buffer*>frame.rets.rets[index]

# The number of elements of a buffer.
cdef inline int64_t size(const JB_Buffer* buffer) noexcept nogil:
    cdef int64_t axis, count = 1
    for axis in range(buffer.rank):
        count *= buffer.dims[axis]
    return count

# The elements of a buffer, row-major; NULL if there is no buffer or it has another dtype.
cdef inline double* float64(JB_Buffer* buffer) noexcept nogil:
    return NULL if buffer == NULL or buffer.dtype != JB_DataType_F64 else <double*>buffer.data

cdef inline float* float32(JB_Buffer* buffer) noexcept nogil:
    return NULL if buffer == NULL or buffer.dtype != JB_DataType_F32 else <float*>buffer.data

cdef inline int64_t* int64(JB_Buffer* buffer) noexcept nogil:
    return NULL if buffer == NULL or buffer.dtype != JB_DataType_S64 else <int64_t*>buffer.data

# The same as a typed memoryview (which needs the GIL to be made).
cdef inline double[::1] float64_view(JB_Buffer* buffer):
    if buffer == NULL or buffer.dtype != JB_DataType_F64:
        raise TypeError("not a buffer of float64")
    cdef double none = 0.0
    if size(buffer) == 0:  # which has no memory
        return (<double[:1]>&none)[:0]
    return <double[:size(buffer)]>float64(buffer)

cdef inline double[:, ::1] float64_matrix(JB_Buffer* buffer):
    if buffer == NULL or buffer.dtype != JB_DataType_F64 or buffer.rank != 2:
        raise TypeError("not a matrix of float64")
    if size(buffer) == 0:  # of a shape for which Cython has no view
        from numpy import empty
        return empty((buffer.dims[0], buffer.dims[1]))
    return <double[:buffer.dims[0], :buffer.dims[1]]>float64(buffer)

# A scalar attribute by its name; NULL if there is none.
cdef inline JB_Scalar* attribute(JB_CallFrame* frame, const char* name) noexcept nogil:
    cdef size_t length = strlen(name)
    cdef int64_t i
    for i in range(frame.attrs.size):
        if (
            frame.attrs.types[i] == JB_AttrType_SCALAR
            and frame.attrs.names[i].len == length
            and memcmp(frame.attrs.names[i].ptr, name, length) == 0
        ):
            return <JB_Scalar*>frame.attrs.attrs[i]
    return NULL

# Its value, if it has that type; NULL otherwise.
cdef inline void* scalar(JB_CallFrame* frame, const char* name, JB_DataType dtype) noexcept nogil:
    cdef JB_Scalar* found = attribute(frame, name)
    return NULL if found == NULL or found.dtype != dtype else found.value

# As a number: Python's 2 is an integer, also where a float is meant. Converted as by C; the default
# if there is no such attribute, or it is no number.
cdef inline double float64_attribute(
    JB_CallFrame* frame, const char* name, double default
) noexcept nogil:
    cdef JB_Scalar* found = attribute(frame, name)
    if found == NULL:
        return default
    if found.dtype == JB_DataType_F64:
        return (<double*>found.value)[0]
    if found.dtype == JB_DataType_F32:
        return (<float*>found.value)[0]
    if found.dtype > JB_DataType_U64:  # no integer
        return default
    return <double>int64_attribute(frame, name, 0)

cdef inline int64_t int64_attribute(
    JB_CallFrame* frame, const char* name, int64_t default
) noexcept nogil:
    cdef JB_Scalar* found = attribute(frame, name)
    if found == NULL:
        return default
    if found.dtype == JB_DataType_S64 or found.dtype == JB_DataType_U64:
        return (<int64_t*>found.value)[0]
    if found.dtype == JB_DataType_S32:
        return (<int32_t*>found.value)[0]
    if found.dtype == JB_DataType_U32:
        return (<uint32_t*>found.value)[0]
    if found.dtype == JB_DataType_S16:
        return (<int16_t*>found.value)[0]
    if found.dtype == JB_DataType_U16:
        return (<uint16_t*>found.value)[0]
    if found.dtype == JB_DataType_S8:
        return (<int8_t*>found.value)[0]
    if found.dtype == JB_DataType_U8 or found.dtype == JB_DataType_PRED:
        return (<uint8_t*>found.value)[0]
    if found.dtype == JB_DataType_F64:
        return <int64_t>(<double*>found.value)[0]
    if found.dtype == JB_DataType_F32:
        return <int64_t>(<float*>found.value)[0]
    return default

# An error, for a handler to return; ``message`` is copied.
cdef inline JB_Error* error(
    JB_CallFrame* frame, const char* message, JB_Error_Code code=JB_Error_Code_INVALID_ARGUMENT
) noexcept nogil:
    cdef JB_Error_Create_Args args
    args.struct_size = sizeof(JB_Error_Create_Args)
    args.extension_start = NULL
    args.message = message
    args.errc = code
    return frame.api.Error_Create(&args)
