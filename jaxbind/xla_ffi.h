/* The part of XLA's FFI that a CPU handler touches, declared by ourselves.

   XLA's own header cannot be used: its names change between releases while its layout only
   grows, and building against one jaxlib must not tie the package to it. Every offset, size and
   constant here is compared with the header of the installed jaxlib by tests/test_abi.py.
   Names are XLA's with JB_ in place of XLA_FFI_. API 0.3 (jaxlib 0.9.1) is the oldest. */

#ifndef JAXBIND_XLA_FFI_H_
#define JAXBIND_XLA_FFI_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct JB_Error JB_Error;                 /* made by Api.Error_Create, owned by XLA once returned */
typedef struct JB_ExecutionContext JB_ExecutionContext; /* owned by XLA, valid during one call */
typedef struct JB_Api JB_Api;

/* Extensions --------------------------------------------------------------------------------- */

typedef enum { JB_Extension_Metadata = 1 } JB_Extension_Type;

typedef struct JB_Extension_Base {
  size_t struct_size;
  JB_Extension_Type type;
  struct JB_Extension_Base* next;
} JB_Extension_Base;

typedef struct JB_Api_Version {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  int major_version; /* out */
  int minor_version; /* out */
} JB_Api_Version;

typedef struct JB_TypeId {
  int64_t type_id; /* assigned by XLA at registration */
} JB_TypeId;

typedef struct JB_TypeInfo {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  void (*deleter)(void* object); /* called when the executable that owns the state dies */
} JB_TypeInfo;

typedef uint32_t JB_Handler_Traits;

typedef struct JB_Metadata {
  size_t struct_size;
  JB_Api_Version api_version; /* out: must not be newer than the runtime's */
  JB_Handler_Traits traits;   /* out */
  JB_TypeId state_type_id;    /* out: of the state that the instantiate stage sets */
} JB_Metadata;

typedef struct JB_Metadata_Extension {
  JB_Extension_Base extension_base;
  JB_Metadata* metadata;
} JB_Metadata_Extension;

/* Buffers and attributes --------------------------------------------------------------------- */

typedef enum {
  JB_DataType_INVALID = 0,
  JB_DataType_PRED = 1,
  JB_DataType_S8 = 2,
  JB_DataType_S16 = 3,
  JB_DataType_S32 = 4,
  JB_DataType_S64 = 5,
  JB_DataType_U8 = 6,
  JB_DataType_U16 = 7,
  JB_DataType_U32 = 8,
  JB_DataType_U64 = 9,
  JB_DataType_F16 = 10,
  JB_DataType_F32 = 11,
  JB_DataType_F64 = 12,
  JB_DataType_C64 = 15,
  JB_DataType_BF16 = 16,
  JB_DataType_TOKEN = 17,
  JB_DataType_C128 = 18,
  JB_DataType_F8E5M2 = 19,
  JB_DataType_F8E4M3FN = 20,
  JB_DataType_S4 = 21,
  JB_DataType_U4 = 22,
  JB_DataType_F8E4M3B11FNUZ = 23,
  JB_DataType_F8E5M2FNUZ = 24,
  JB_DataType_F8E4M3FNUZ = 25,
  JB_DataType_S2 = 26,
  JB_DataType_U2 = 27,
  JB_DataType_F8E4M3 = 28,
  JB_DataType_F8E3M4 = 29,
  JB_DataType_F4E2M1FN = 32,
  JB_DataType_F8E8M0FNU = 33
} JB_DataType;

typedef struct JB_Buffer {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  JB_DataType dtype;
  void* data; /* owned by XLA, valid during the call */
  int64_t rank;
  int64_t* dims; /* rank of them; logical, whatever the layout */
} JB_Buffer;

typedef enum { JB_ArgType_BUFFER = 1 } JB_ArgType;
typedef enum { JB_RetType_BUFFER = 1 } JB_RetType;

typedef enum {
  JB_AttrType_ARRAY = 1,
  JB_AttrType_DICTIONARY = 2,
  JB_AttrType_SCALAR = 3,
  JB_AttrType_STRING = 4
} JB_AttrType;

typedef struct JB_ByteSpan {
  const char* ptr; /* not terminated by zero */
  size_t len;
} JB_ByteSpan;

typedef struct JB_Scalar {
  JB_DataType dtype;
  void* value;
} JB_Scalar;

typedef struct JB_Array {
  JB_DataType dtype;
  size_t size;
  void* data;
} JB_Array;

typedef struct JB_Args {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  int64_t size;
  JB_ArgType* types; /* size of them */
  void** args;       /* size of them: JB_Buffer* */
} JB_Args;

typedef struct JB_Rets {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  int64_t size;
  JB_RetType* types; /* size of them */
  void** rets;       /* size of them: JB_Buffer* */
} JB_Rets;

typedef struct JB_Attrs {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  int64_t size;
  JB_AttrType* types;  /* size of them */
  JB_ByteSpan** names; /* size of them */
  void** attrs; /* size of them: JB_Scalar*, JB_Array*, JB_ByteSpan* or JB_Attrs* */
} JB_Attrs;

/* The call ----------------------------------------------------------------------------------- */

typedef enum {
  JB_ExecutionStage_INSTANTIATE = 0,
  JB_ExecutionStage_PREPARE = 1,
  JB_ExecutionStage_INITIALIZE = 2,
  JB_ExecutionStage_EXECUTE = 3
} JB_ExecutionStage;

typedef struct JB_CallFrame {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  const JB_Api* api;
  JB_ExecutionContext* ctx; /* NULL when XLA only asks for metadata */
  JB_ExecutionStage stage;
  JB_Args args;
  JB_Rets rets;
  JB_Attrs attrs;
  void* future; /* out: for asynchronous handlers, which ours are not */
} JB_CallFrame;

typedef JB_Error* JB_Handler(JB_CallFrame* call_frame);

/* Functions of the runtime ------------------------------------------------------------------- */

typedef enum {
  JB_Error_Code_OK = 0,
  JB_Error_Code_CANCELLED = 1,
  JB_Error_Code_UNKNOWN = 2,
  JB_Error_Code_INVALID_ARGUMENT = 3,
  JB_Error_Code_NOT_FOUND = 5,
  JB_Error_Code_FAILED_PRECONDITION = 9,
  JB_Error_Code_UNIMPLEMENTED = 12,
  JB_Error_Code_INTERNAL = 13
} JB_Error_Code;

typedef struct JB_Error_Create_Args {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  const char* message; /* copied */
  JB_Error_Code errc;
} JB_Error_Create_Args;

typedef struct JB_Error_GetMessage_Args {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  JB_Error* error;
  const char* message; /* out; the error's */
  JB_Error_Code errc;  /* out; left alone before version 0.5 of the interface */
} JB_Error_GetMessage_Args;

typedef struct JB_Stream_Get_Args {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  JB_ExecutionContext* ctx;
  void* stream; /* out: on a GPU, CUDA's CUstream */
} JB_Stream_Get_Args;

typedef struct JB_State_Set_Args {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  JB_ExecutionContext* ctx;
  JB_ExecutionStage stage;
  JB_TypeId* type_id;
  void* state; /* XLA's from here on; given to the type's deleter */
} JB_State_Set_Args;

typedef struct JB_State_Get_Args {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  JB_ExecutionContext* ctx;
  JB_ExecutionStage stage; /* the stage that set it */
  JB_TypeId* type_id;
  void* state; /* out; borrowed */
} JB_State_Get_Args;

typedef struct JB_Error_Destroy_Args {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  JB_Error* error;
} JB_Error_Destroy_Args;

typedef void JB_Task(void* data);

typedef struct JB_ThreadPool_Schedule_Args {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  JB_ExecutionContext* ctx;
  JB_Task* task;
  void* data; /* stays ours; may be used after the handler has returned */
} JB_ThreadPool_Schedule_Args;

typedef struct JB_ThreadPool_NumThreads_Args {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  JB_ExecutionContext* ctx;
  int64_t* num_threads; /* out */
} JB_ThreadPool_NumThreads_Args;

struct JB_Api {
  size_t struct_size;
  JB_Extension_Base* extension_start;
  JB_Api_Version api_version;
  const void* internal_api;
  JB_Error* (*Error_Create)(JB_Error_Create_Args* args);
  void (*Error_GetMessage)(JB_Error_GetMessage_Args* args);
  void (*Error_Destroy)(JB_Error_Destroy_Args* args);
  void* Handler_Register;
  JB_Error* (*Stream_Get)(JB_Stream_Get_Args* args);
  void* Type_Register;
  void* ExecutionContext_Get;
  JB_Error* (*State_Set)(JB_State_Set_Args* args);
  JB_Error* (*State_Get)(JB_State_Get_Args* args);
  void* DeviceMemory_Allocate;
  void* DeviceMemory_Free;
  JB_Error* (*ThreadPool_Schedule)(JB_ThreadPool_Schedule_Args* args);
  JB_Error* (*ThreadPool_NumThreads)(JB_ThreadPool_NumThreads_Args* args);
};

#ifdef __cplusplus
}
#endif

#endif /* JAXBIND_XLA_FFI_H_ */
