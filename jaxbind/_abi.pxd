"""The XLA FFI's C ABI for Cython: structs only.

See ``xla_ffi.h`` (found with ``jaxbind.get_include()``) for who owns what.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t

cdef extern from "xla_ffi.h" nogil:
    ctypedef struct JB_Error:
        pass
    ctypedef struct JB_ExecutionContext:
        pass

    ctypedef enum JB_Extension_Type:
        JB_Extension_Metadata

    ctypedef struct JB_Extension_Base:
        size_t struct_size
        JB_Extension_Type type
        JB_Extension_Base* next

    ctypedef struct JB_Api_Version:
        size_t struct_size
        JB_Extension_Base* extension_start
        int major_version
        int minor_version

    ctypedef struct JB_TypeId:
        int64_t type_id

    ctypedef struct JB_TypeInfo:
        size_t struct_size
        JB_Extension_Base* extension_start
        void (*deleter)(void* object) noexcept nogil

    ctypedef uint32_t JB_Handler_Traits

    ctypedef struct JB_Metadata:
        size_t struct_size
        JB_Api_Version api_version
        JB_Handler_Traits traits
        JB_TypeId state_type_id

    ctypedef struct JB_Metadata_Extension:
        JB_Extension_Base extension_base
        JB_Metadata* metadata

    ctypedef enum JB_DataType:
        JB_DataType_INVALID
        JB_DataType_PRED
        JB_DataType_S8
        JB_DataType_S16
        JB_DataType_S32
        JB_DataType_S64
        JB_DataType_U8
        JB_DataType_U16
        JB_DataType_U32
        JB_DataType_U64
        JB_DataType_F16
        JB_DataType_F32
        JB_DataType_F64
        JB_DataType_C64
        JB_DataType_BF16
        JB_DataType_TOKEN
        JB_DataType_C128
        JB_DataType_F8E5M2
        JB_DataType_F8E4M3FN
        JB_DataType_S4
        JB_DataType_U4
        JB_DataType_F8E4M3B11FNUZ
        JB_DataType_F8E5M2FNUZ
        JB_DataType_F8E4M3FNUZ
        JB_DataType_S2
        JB_DataType_U2
        JB_DataType_F8E4M3
        JB_DataType_F8E3M4
        JB_DataType_F4E2M1FN
        JB_DataType_F8E8M0FNU

    ctypedef struct JB_Buffer:
        size_t struct_size
        JB_Extension_Base* extension_start
        JB_DataType dtype
        void* data
        int64_t rank
        int64_t* dims

    ctypedef enum JB_ArgType:
        JB_ArgType_BUFFER

    ctypedef enum JB_RetType:
        JB_RetType_BUFFER

    ctypedef enum JB_AttrType:
        JB_AttrType_ARRAY
        JB_AttrType_DICTIONARY
        JB_AttrType_SCALAR
        JB_AttrType_STRING

    ctypedef struct JB_ByteSpan:
        const char* ptr
        size_t len

    ctypedef struct JB_Scalar:
        JB_DataType dtype
        void* value

    ctypedef struct JB_Array:
        JB_DataType dtype
        size_t size
        void* data

    ctypedef struct JB_Args:
        size_t struct_size
        JB_Extension_Base* extension_start
        int64_t size
        JB_ArgType* types
        void** args

    ctypedef struct JB_Rets:
        size_t struct_size
        JB_Extension_Base* extension_start
        int64_t size
        JB_RetType* types
        void** rets

    ctypedef struct JB_Attrs:
        size_t struct_size
        JB_Extension_Base* extension_start
        int64_t size
        JB_AttrType* types
        JB_ByteSpan** names
        void** attrs

    ctypedef enum JB_ExecutionStage:
        JB_ExecutionStage_INSTANTIATE
        JB_ExecutionStage_PREPARE
        JB_ExecutionStage_INITIALIZE
        JB_ExecutionStage_EXECUTE

    ctypedef enum JB_Error_Code:
        JB_Error_Code_OK
        JB_Error_Code_CANCELLED
        JB_Error_Code_UNKNOWN
        JB_Error_Code_INVALID_ARGUMENT
        JB_Error_Code_NOT_FOUND
        JB_Error_Code_FAILED_PRECONDITION
        JB_Error_Code_UNIMPLEMENTED
        JB_Error_Code_INTERNAL

    ctypedef struct JB_Error_Create_Args:
        size_t struct_size
        JB_Extension_Base* extension_start
        const char* message
        JB_Error_Code errc

    ctypedef struct JB_Error_GetMessage_Args:
        size_t struct_size
        JB_Extension_Base* extension_start
        JB_Error* error
        const char* message
        JB_Error_Code errc

    ctypedef struct JB_Error_Destroy_Args:
        size_t struct_size
        JB_Extension_Base* extension_start
        JB_Error* error

    ctypedef struct JB_Stream_Get_Args:
        size_t struct_size
        JB_Extension_Base* extension_start
        JB_ExecutionContext* ctx
        void* stream

    ctypedef struct JB_State_Set_Args:
        size_t struct_size
        JB_Extension_Base* extension_start
        JB_ExecutionContext* ctx
        JB_ExecutionStage stage
        JB_TypeId* type_id
        void* state

    ctypedef struct JB_State_Get_Args:
        size_t struct_size
        JB_Extension_Base* extension_start
        JB_ExecutionContext* ctx
        JB_ExecutionStage stage
        JB_TypeId* type_id
        void* state

    ctypedef void (*JB_Task)(void* data) noexcept nogil

    ctypedef struct JB_ThreadPool_Schedule_Args:
        size_t struct_size
        JB_Extension_Base* extension_start
        JB_ExecutionContext* ctx
        JB_Task task
        void* data

    ctypedef struct JB_ThreadPool_NumThreads_Args:
        size_t struct_size
        JB_Extension_Base* extension_start
        JB_ExecutionContext* ctx
        int64_t* num_threads

    ctypedef struct JB_Api:
        size_t struct_size
        JB_Extension_Base* extension_start
        JB_Api_Version api_version
        JB_Error* (*Error_Create)(JB_Error_Create_Args*) noexcept nogil
        void (*Error_GetMessage)(JB_Error_GetMessage_Args*) noexcept nogil
        void (*Error_Destroy)(JB_Error_Destroy_Args*) noexcept nogil
        JB_Error* (*Stream_Get)(JB_Stream_Get_Args*) noexcept nogil
        JB_Error* (*State_Set)(JB_State_Set_Args*) noexcept nogil
        JB_Error* (*State_Get)(JB_State_Get_Args*) noexcept nogil
        JB_Error* (*ThreadPool_Schedule)(JB_ThreadPool_Schedule_Args*) noexcept nogil
        JB_Error* (*ThreadPool_NumThreads)(JB_ThreadPool_NumThreads_Args*) noexcept nogil

    ctypedef struct JB_CallFrame:
        size_t struct_size
        JB_Extension_Base* extension_start
        const JB_Api* api
        JB_ExecutionContext* ctx
        JB_ExecutionStage stage
        JB_Args args
        JB_Rets rets
        JB_Attrs attrs
        void* future
