/* Whether a call frame can be read at all. XLA's always can; what cannot must end in an error.

   `jb_frame_flaw` is asked at every call, `jb_buffer_flaw` where a layout is seen for the first
   time: later ones are compared with it by `jb_fits`. The first two give a text, or NULL. */

#ifndef JAXBIND_SOUND_H_
#define JAXBIND_SOUND_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "xla_ffi.h"

enum { JB_RANK_AT_MOST = 256 }; /* whether NumPy can show it is asked later */

static inline const char *jb_frame_flaw(const JB_CallFrame *frame) {
  if (frame->struct_size < offsetof(JB_CallFrame, future)) return "a call frame that is too small";
  if (frame->args.size < 0 || frame->rets.size < 0 || frame->attrs.size < 0)
    return "a negative number of operands, results or attributes";
  if (frame->args.size > 0 && (frame->args.types == NULL || frame->args.args == NULL))
    return "operands without memory";
  if (frame->rets.size > 0 && (frame->rets.types == NULL || frame->rets.rets == NULL))
    return "results without memory";
  return NULL;
}

/* As much of a frame as there is; the rest is zero. */
static inline void jb_copy_frame(JB_CallFrame *to, const JB_CallFrame *from) {
  size_t size = from->struct_size < sizeof(*to) ? from->struct_size : sizeof(*to);
  memset(to, 0, sizeof(*to));
  memcpy(to, from, size);
  to->struct_size = size;
}

static inline const char *jb_buffer_flaw(const JB_Buffer *buffer) {
  int64_t count = 1;
  if (buffer == NULL) return "something other than a buffer";
  if (buffer->struct_size < sizeof(JB_Buffer)) return "a buffer descriptor that is too small";
  if (buffer->rank < 0 || buffer->rank > JB_RANK_AT_MOST) return "a buffer of an impossible rank";
  if (buffer->rank > 0 && buffer->dims == NULL) return "a buffer without dimensions";
  for (int64_t a = 0; a < buffer->rank; a++) {
    if (buffer->dims[a] < 0) return "a buffer with a negative dimension";
    if (count > 0 && buffer->dims[a] > (INT64_MAX >> 5) / count) return "a buffer that is too large";
    count *= buffer->dims[a];
  }
  if (count > 0 && buffer->data == NULL) return "a buffer without memory";
  return NULL;
}

/* The buffer descriptor of operand or result `i`, operands first; NULL if XLA passes something else. */
static inline JB_Buffer *jb_buffer(const JB_CallFrame *frame, int operands, int i) {
  if (i < operands) {
    return frame->args.types[i] == JB_ArgType_BUFFER ? (JB_Buffer *)frame->args.args[i] : NULL;
  }
  i -= operands;
  return frame->rets.types[i] == JB_RetType_BUFFER ? (JB_Buffer *)frame->rets.rets[i] : NULL;
}

/* Whether the buffers of a frame are as they were when its call site was first executed; fills in
   where they start. `known` holds for each its type, its rank, its size in bytes and its
   dimensions. */
static inline int jb_fits(
    const int64_t *known, int operands, int buffers, const JB_CallFrame *frame, char **starts) {
  if (frame->args.size != operands || frame->rets.size != buffers - operands) return 0;
  for (int i = 0; i < buffers; i++) {
    const JB_Buffer *b = jb_buffer(frame, operands, i);
    if (b == NULL || (int64_t)b->dtype != known[0] || b->rank != known[1]) return 0;
    if ((b->rank > 0 && b->dims == NULL) || (known[2] > 0 && b->data == NULL)) return 0;
    known += 3;
    for (int64_t a = 0; a < b->rank; a++)
      if (b->dims[a] != *known++) return 0;
    starts[i] = (char *)b->data;
  }
  return 1;
}

#endif
