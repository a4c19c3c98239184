/* Calls from a program on a GPU: operands are copied to the host, where the function is called, and
   its results back.

   The handler gets the same frame with other addresses. Copies are made on the stream of the
   program, which holds what comes before it and what comes after. They go by memory that the driver
   has pinned, which is several times faster; pinning is slow, so the blocks are kept. */

#ifndef JAXBIND_DEVICE_H_
#define JAXBIND_DEVICE_H_

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "_convert.h"
#include "_sound.h"
#include "xla_ffi.h"

/* Functions of CUDA's driver, in the order in which `_cuda.py` names them. */
typedef struct {
  int (*context_of)(void *stream, void **context);
  int (*push)(void *context);
  int (*pop)(void **context);
  int (*to_host)(void *to, uintptr_t from, size_t size, void *stream);
  int (*to_device)(uintptr_t to, const void *from, size_t size, void *stream);
  int (*wait)(void *stream);
  int (*pin)(void **block, size_t size, unsigned int flags);
  int (*unpin)(void *block);
  int (*describe)(int code, const char **text);
} jb_driver;

enum { JB_DRIVER_FUNCTIONS = sizeof(jb_driver) / sizeof(void *) };

static jb_driver jb_cuda;

static inline void jb_set_driver(int function, uintptr_t address) {
  memcpy((char *)&jb_cuda + function * sizeof(void *), &address, sizeof(void *));
}

typedef JB_Error *(*jb_execute)(JB_CallFrame *frame);

/* No machine has more; sums of sizes below it do not overflow. */
#define JB_MOST_BYTES ((int64_t)1 << 56)
/* To lines of the cache. */
#define JB_ROUNDED(size) (((size_t)(size) + 63) & ~(size_t)63)

static inline JB_Error *jb_device_error(JB_CallFrame *frame, const char *what, int code) {
  const char *said = NULL;
  char text[512];
  if (code != 0) jb_cuda.describe(code, &said);
  snprintf(text, sizeof(text), "jaxbind: %s%s%s", what, said ? ": " : "", said ? said : "");
  JB_Error_Create_Args args = {sizeof(args), NULL, text, JB_Error_Code_INTERNAL};
  return frame->api->Error_Create(&args);
}

/* Blocks of pinned memory that no call uses. */
enum { JB_BLOCKS = 8, JB_PORTABLE = 1 };
#define JB_LEAST_BLOCK ((size_t)1 << 16)
#define JB_LARGEST_BLOCK ((size_t)1 << 26)

typedef struct {
  char *start;
  size_t size;
  int pinned;
} jb_block;

static struct {
  pthread_mutex_t mutex;
  int count;
  jb_block free[JB_BLOCKS];
} jb_pool = {PTHREAD_MUTEX_INITIALIZER, 0, {{NULL, 0, 0}}};

static inline void jb_give_block(jb_block block) {
  if (block.pinned) {
    pthread_mutex_lock(&jb_pool.mutex);
    if (jb_pool.count < JB_BLOCKS) {
      jb_pool.free[jb_pool.count++] = block;
      block.start = NULL;
    } else { /* the smallest makes way */
      int least = 0;
      for (int i = 1; i < JB_BLOCKS; i++)
        if (jb_pool.free[i].size < jb_pool.free[least].size) least = i;
      if (jb_pool.free[least].size < block.size) {
        jb_block other = jb_pool.free[least];
        jb_pool.free[least] = block;
        block = other;
      }
    }
    pthread_mutex_unlock(&jb_pool.mutex);
    if (block.start != NULL) (void)jb_cuda.unpin(block.start);
  } else {
    free(block.start);
  }
}

/* At least so many bytes, the smallest free block that has them; `start` is NULL if there are none.
   More than the largest block is ordinary memory. */
static inline jb_block jb_take_block(size_t size) {
  jb_block found = {NULL, JB_LEAST_BLOCK, 1};
  int best = -1;
  while (found.size < size && found.size < JB_LARGEST_BLOCK) found.size *= 2;
  if (size <= found.size) {
    pthread_mutex_lock(&jb_pool.mutex);
    for (int i = 0; i < jb_pool.count; i++)
      if (jb_pool.free[i].size >= size &&
          (best < 0 || jb_pool.free[i].size < jb_pool.free[best].size))
        best = i;
    if (best >= 0) {
      found = jb_pool.free[best];
      jb_pool.free[best] = jb_pool.free[--jb_pool.count];
    }
    pthread_mutex_unlock(&jb_pool.mutex);
    if (best >= 0 || jb_cuda.pin((void **)&found.start, found.size, JB_PORTABLE) == 0) return found;
  }
  found.pinned = 0;
  found.size = size;
  if (posix_memalign((void **)&found.start, 4096, size) != 0) found.start = NULL;
  return found;
}

/* Bytes of a buffer; -1 if they cannot be told. A token has none. */
static inline int64_t jb_buffer_size(const JB_Buffer *b) {
  if (b != NULL && b->struct_size >= sizeof(JB_Buffer) && b->dtype == JB_DataType_TOKEN) return 0;
  if (jb_buffer_flaw(b) != NULL) return -1;
  int64_t size = jb_itemsize((int)b->dtype);
  if (size == 0) return -1;
  for (int64_t a = 0; a < b->rank; a++) size *= b->dims[a];
  return size;
}

/* Copy operands, call, copy results: with the stream's context current, and memory for all.
   `busy` tells that copies may still go on. */
static inline JB_Error *jb_between_copies(
    JB_CallFrame *frame, const int64_t *sizes, JB_Buffer *made, void **pointers, char *memory,
    void *stream, jb_execute call, int *busy) {
  int operands = (int)frame->args.size, buffers = operands + (int)frame->rets.size, code = 0;
  for (int i = 0; i < buffers; i++) {
    if (sizes[i] == 0) continue;
    const void *address = made[i].data;
    made[i].data = NULL;
    for (int k = 0; i >= operands && k < operands; k++) /* a result in an operand's memory */
      if (sizes[k] == sizes[i] && jb_buffer(frame, operands, k)->data == address)
        made[i].data = made[k].data;
    if (made[i].data == NULL) {
      made[i].data = memory;
      memory += JB_ROUNDED(sizes[i]);
    }
    if (i < operands && code == 0)
      code = jb_cuda.to_host(made[i].data, (uintptr_t)address, (size_t)sizes[i], stream);
  }
  int waited = jb_cuda.wait(stream); /* also for those before one that failed */
  *busy = waited != 0;
  if (code == 0) code = waited;
  if (code != 0) return jb_device_error(frame, "operands cannot be copied from the GPU", code);

  JB_CallFrame inner;
  jb_copy_frame(&inner, frame);
  inner.args.args = pointers;
  inner.rets.rets = pointers + operands;
  JB_Error *error = call(&inner);
  if (error != NULL) return error;
  for (int i = operands; i < buffers && code == 0; i++)
    if (sizes[i] > 0)
      code = jb_cuda.to_device(
          (uintptr_t)jb_buffer(frame, operands, i)->data, made[i].data, (size_t)sizes[i], stream);
  waited = jb_cuda.wait(stream); /* the memory is somebody else's then */
  *busy = waited != 0;
  if (code == 0) code = waited;
  if (code != 0) return jb_device_error(frame, "results cannot be copied to the GPU", code);
  return NULL;
}

/* With descriptors of buffers that are still on the device. */
static inline JB_Error *jb_with_memory(
    JB_CallFrame *frame, const int64_t *sizes, JB_Buffer *made, void **pointers, jb_execute call) {
  JB_Stream_Get_Args args = {sizeof(args), NULL, frame->ctx, NULL};
  int64_t buffers = frame->args.size + frame->rets.size;
  size_t total = 0;
  void *context = NULL;
  for (int64_t i = 0; i < buffers; i++) {
    total += JB_ROUNDED(sizes[i]);
    if (sizes[i] > JB_MOST_BYTES || total > JB_MOST_BYTES)
      return jb_device_error(frame, "more operands and results than there is memory", 0);
  }
  JB_Error *error = frame->api->Stream_Get(&args);
  if (error != NULL) return error;
  int code = jb_cuda.context_of(args.stream, &context);
  if (code == 0) code = jb_cuda.push(context);
  if (code != 0) return jb_device_error(frame, "the GPU's context cannot be had", code);
  jb_block block = jb_take_block(total);
  if (block.start == NULL) {
    error = jb_device_error(frame, "no memory on the host for operands and results", 0);
  } else {
    int busy = 0;
    error = jb_between_copies(frame, sizes, made, pointers, block.start, args.stream, call, &busy);
    if (!busy) jb_give_block(block); /* or else nobody may have it again */
  }
  (void)jb_cuda.pop(&context);
  return error;
}

/* Execute a call whose buffers are on the device. */
static inline JB_Error *jb_on_host(JB_CallFrame *frame, jb_execute call) {
  if (jb_frame_flaw(frame) != NULL || frame->api == NULL ||
      frame->stage != JB_ExecutionStage_EXECUTE)
    return call(frame); /* it says what is wrong, and looks at no buffer */
  if (frame->args.size > INT32_MAX / 4 || frame->rets.size > INT32_MAX / 4)
    return jb_device_error(frame, "a call of too many operands or results", 0);
  if (frame->api->Stream_Get == NULL || jb_cuda.wait == NULL)
    return jb_device_error(frame, "a call on a device that cannot be reached", 0);
  int operands = (int)frame->args.size, buffers = operands + (int)frame->rets.size;

  /* for each buffer its size, a descriptor, and a pointer to that */
  size_t each = sizeof(int64_t) + sizeof(JB_Buffer) + sizeof(void *);
  int64_t *sizes = (int64_t *)malloc((size_t)buffers * each + 1);
  if (sizes == NULL) return jb_device_error(frame, "no memory for a call", 0);
  JB_Buffer *made = (JB_Buffer *)(sizes + buffers);
  void **pointers = (void **)(made + buffers);
  JB_Error *error = NULL;
  for (int i = 0; i < buffers && error == NULL; i++) {
    const JB_Buffer *b = jb_buffer(frame, operands, i);
    sizes[i] = jb_buffer_size(b);
    if (sizes[i] < 0) {
      error = jb_device_error(frame, "an operand or result on the GPU that cannot be read", 0);
    } else {
      memcpy(&made[i], b, sizeof(JB_Buffer));
      pointers[i] = &made[i];
    }
  }
  if (error == NULL) error = jb_with_memory(frame, sizes, made, pointers, call);
  free(sizes);
  return error;
}

#endif
