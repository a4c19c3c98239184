/* Whether a call frame can be read at all. XLA's always can; what cannot must end in an error.

   `jb_frame_flaw` is asked at every call, `jb_buffer_flaw` where a layout is seen for the first
   time: later ones are compared with it. Both give a text, or NULL. */

#ifndef JAXBIND_SOUND_H_
#define JAXBIND_SOUND_H_

#include <stddef.h>
#include <stdint.h>

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

/* Whether a buffer whose type and rank are known may have its dimensions compared. */
static inline int jb_is_there(const JB_Buffer *buffer, int64_t bytes) {
  return (buffer->rank == 0 || buffer->dims != NULL) && (bytes == 0 || buffer->data != NULL);
}

#endif
