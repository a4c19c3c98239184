/* Compiled loops and kernels over XLA's buffers: without the GIL, on several threads.

   A `jb_kernel` says what is called and how; it belongs to a call site. A `jb_plan` says how the
   buffers of a call lie: loop dimensions (merged where their steps allow it) with a step per
   buffer, 0 where it is broadcast, and core dimensions behind them. The plan of the first call
   is kept; a call of other shapes makes its own. */

#ifndef JAXBIND_LOOPS_H_
#define JAXBIND_LOOPS_H_

#include <Python.h>
#include <complex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_convert.h"
#include "_sound.h"
#include "_threads.h"
#include "xla_ffi.h"

enum { JB_BUFFERS = 40, JB_AXES = 128, JB_DIMS = 64, JB_SLOTS = 48, JB_INTEGERS_AT_MOST = 32, JB_REALS = 8 };

/* What an argument of a C or Fortran function is. */
enum {
  JB_SLOT_BUFFER,       /* pointer to the elements of buffer `index` */
  JB_SLOT_ELEMENT,      /* the one element of buffer `index`, by value */
  JB_SLOT_DIM,          /* core dimension `index`, by value */
  JB_SLOT_DIM_POINTER,  /* the same by reference, in `code` */
  JB_SLOT_VALUE,        /* a static parameter by value */
  JB_SLOT_VALUE_POINTER,/* the same by reference, a copy for each call */
  JB_SLOT_STATUS,       /* pointer to an integer that is not 0 after a failure */
  JB_SLOT_DATA          /* the user's pointer */
};

/* What a function returns. */
enum { JB_RETURNS_NOTHING, JB_RETURNS_STATUS, JB_RETURNS_RESULT };

typedef struct {
  int kind, index, code; /* code: of JB_DataType */
  char value[16];
  const char *longer;    /* a value that `value` cannot hold, which the call site keeps; or NULL */
  int64_t size;          /* of that, in bytes */
} jb_slot;

typedef void (*jb_inner_loop)(char **, const intptr_t *, const intptr_t *, void *);

typedef struct jb_plan jb_plan;

/* What every call looks at comes first in both, within two cache lines. */
typedef struct {
  void *function, *data;
  _Atomic(jb_plan *) plan;
  int64_t threads;               /* 0: as many as the runtime has */
  int may_raise;                 /* it may leave a Python exception behind */
  int inner_loop;                /* the convention of NumPy's gufuncs */
  int handler;                   /* an XLA FFI handler; with neither, a function by slots */
  int buffers, operands, loop;   /* operands first; loop dimensions in front of each */
  int dims;                      /* how many core dimensions there are */
  int fortran;
  int slots, returns, result_code;
  int codes[JB_BUFFERS];         /* the types that the function knows */
  int core_ranks[JB_BUFFERS];    /* -1 of a handler, which takes any */
  int core_dims[JB_AXES];        /* number of the core dimension of each core axis */
  int source[JB_BUFFERS];        /* of a result that starts as a copy of an operand; or -1 */
  jb_slot slot[JB_SLOTS];
  JB_Attrs attributes;           /* of a handler */
} jb_kernel;

struct jb_plan {
  int64_t *known;                /* what `jb_fits` compares */
  int64_t total;                 /* iterations over the loop dimensions */
  int large;                     /* whether a result wants huge pages */
  int direct;                    /* one call of an inner loop, or of a plain function, does it all */
  int64_t arguments[6];          /* of a plain function: those that are no pointers to buffers */
  int buffer[6];                 /* and the buffers that the others point to, or -1 */
  intptr_t all_dims[JB_DIMS + 1], all_steps[JB_BUFFERS + JB_AXES]; /* of an inner loop */
  int buffers, operands, loops, axes;
  int codes[JB_BUFFERS];
  int64_t ranks[JB_BUFFERS];
  int64_t *shapes[JB_BUFFERS];
  int64_t *sizes;                /* of the merged loop dimensions */
  int64_t *steps;                /* [buffer * loops + dimension], in bytes of the buffer */
  intptr_t dims[JB_DIMS];
  intptr_t core_steps[JB_AXES];  /* in bytes of what the function sees */
  int64_t elements[JB_BUFFERS];  /* of one core array */
  int64_t bytes[JB_BUFFERS];     /* of the whole buffer */
  jb_converter convert[JB_BUFFERS];
  int converts;
  int64_t block;                 /* iterations that are converted at once */
  int64_t offsets[JB_BUFFERS];   /* into the memory for converted elements */
  int64_t memory;
};

enum { JB_FINE, JB_NO_MEMORY, JB_WRONG_COUNT, JB_NO_BUFFER, JB_WRONG_RANK, JB_WRONG_TYPE, JB_WRONG_SIZE, JB_STATUS, JB_FUTURE };

typedef struct {
  int kind;
  const JB_CallFrame *frame;
  JB_Error *error; /* of a handler, owned */
  void *exception; /* of Python's, owned */
  int buffer;
  _Atomic(int) busy;
  int64_t iteration, status;
} jb_failure;

static inline void jb_start(jb_failure *failure, const JB_CallFrame *frame) {
  failure->kind = JB_FINE;
  failure->frame = frame;
  failure->error = NULL;
  failure->exception = NULL;
  failure->buffer = 0;
  failure->iteration = failure->status = 0;
  atomic_init(&failure->busy, 0); /* nobody else knows it yet: no fence, which takes 4 ns */
}

static inline void jb_fail_at(jb_failure *failure, int64_t iteration, int64_t status) {
  while (atomic_exchange(&failure->busy, 1)) {}
  if (failure->kind == JB_FINE || iteration < failure->iteration) {
    failure->kind = JB_STATUS;
    failure->iteration = iteration;
    failure->status = status;
  }
  atomic_store(&failure->busy, 0);
}

static inline void jb_fail(jb_failure *failure, int kind) {
  while (atomic_exchange(&failure->busy, 1)) {}
  if (failure->kind == JB_FINE) failure->kind = kind;
  atomic_store(&failure->busy, 0);
}

/* Keep the first error of a handler; false if there is one already. */
static inline int jb_first_error(jb_failure *failure, JB_Error *error) {
  int kept = 0;
  while (atomic_exchange(&failure->busy, 1)) {}
  if (failure->error == NULL) {
    failure->error = error;
    kept = 1;
  }
  atomic_store(&failure->busy, 0);
  return kept;
}

/* Whether the thread that calls this has a Python exception set; without the GIL: it is its own. */
static inline int jb_raised(void) {
  PyThreadState *state = PyGILState_GetThisThreadState();
#if PY_VERSION_HEX >= 0x030C0000
  return state != NULL && state->current_exception != NULL;
#else
  return state != NULL && state->curexc_type != NULL;
#endif
}

/* Buffers ------------------------------------------------------------------------------------ */

static void jb_plan_free(jb_plan *plan) {
  if (plan == NULL) return;
  for (int i = 0; i < plan->buffers; i++) free(plan->shapes[i]);
  free(plan->known);
  free(plan->sizes);
  free(plan->steps);
  free(plan);
}

/* Put one value of a type where a function expects it. */
static inline void jb_pass(const char *from, int code, int64_t *i, int *integers, double *d, int *reals) {
  switch (code) {
    case JB_DataType_F64: memcpy(&d[(*reals)++], from, 8); return;
    case JB_DataType_F32: d[*reals] = 0; memcpy(&d[(*reals)++], from, 4); return;
    case JB_DataType_C128: memcpy(&d[*reals], from, 16); *reals += 2; return;
    case JB_DataType_C64:
#if defined(__aarch64__)
      d[*reals] = d[*reals + 1] = 0;
      memcpy(&d[(*reals)++], from, 4);
      memcpy(&d[(*reals)++], from + 4, 4);
#else
      memcpy(&d[(*reals)++], from, 8);
#endif
      return;
    case JB_DataType_S8: i[(*integers)++] = *(const int8_t *)from; return;
    case JB_DataType_S16: { int16_t v; memcpy(&v, from, 2); i[(*integers)++] = v; return; }
    case JB_DataType_S32: { int32_t v; memcpy(&v, from, 4); i[(*integers)++] = v; return; }
    case JB_DataType_U16: { uint16_t v; memcpy(&v, from, 2); i[(*integers)++] = v; return; }
    case JB_DataType_U32: { uint32_t v; memcpy(&v, from, 4); i[(*integers)++] = v; return; }
    case JB_DataType_S64: case JB_DataType_U64: memcpy(&i[(*integers)++], from, 8); return;
    default: i[(*integers)++] = *(const uint8_t *)from; return;
  }
}

/* Prepare for the most frequent calls, so that they cost next to nothing: one call, and no more. */
static void jb_plan_directly(const jb_kernel *k, jb_plan *p) {
  if (p->converts || p->loops > 1 || p->total == 0 || k->handler) return;
  for (int b = k->operands; b < k->buffers; b++)
    if (k->source[b] >= 0) return;
  if (k->inner_loop) {
    p->all_dims[0] = (intptr_t)p->total;
    for (int d = 0; d < k->dims; d++) p->all_dims[d + 1] = p->dims[d];
    for (int b = 0; b < k->buffers; b++)
      p->all_steps[b] = p->loops ? (intptr_t)p->steps[b * k->loop]
                                 : (intptr_t)(p->elements[b] * jb_itemsize(p->codes[b]));
    for (int a = 0; a < p->axes; a++) p->all_steps[k->buffers + a] = p->core_steps[a];
    p->direct = 1;
    return;
  }
  if (p->total > 1 || k->slots > 6 || k->returns != JB_RETURNS_NOTHING) return;
  for (int s = 0; s < 6; s++) p->buffer[s] = -1;
  for (int s = 0; s < k->slots; s++) {
    const jb_slot *slot = &k->slot[s];
    int integers = 0, reals = 0;
    double none[JB_REALS];
    if (slot->kind == JB_SLOT_BUFFER) {
      p->buffer[s] = slot->index;
    } else if (slot->kind == JB_SLOT_DIM) {
      p->arguments[s] = p->dims[slot->index];
    } else if (slot->kind == JB_SLOT_DATA) {
      p->arguments[s] = (int64_t)(intptr_t)k->data;
    } else if (slot->kind == JB_SLOT_VALUE && slot->code <= JB_DataType_U64) {
      jb_pass(slot->value, slot->code, &p->arguments[s], &integers, none, &reals);
    } else {
      return;
    }
  }
  p->direct = 1;
}

/* The plan of a frame; NULL with the failure told. */
static jb_plan *jb_plan_of(const jb_kernel *k, const JB_CallFrame *frame, jb_failure *failure) {
  int64_t raw[JB_BUFFERS], full[JB_AXES], first[JB_DIMS];
  jb_plan *p;
  int axis, at = 0, loop = k->loop;
#define JB_REFUSE(what, which) do { failure->kind = (what); failure->buffer = (which); jb_plan_free(p); return NULL; } while (0)
  p = (jb_plan *)calloc(1, sizeof(jb_plan));
  if (p == NULL) JB_REFUSE(JB_NO_MEMORY, 0);
  if (frame->args.size != k->operands || frame->rets.size != k->buffers - k->operands || loop > JB_AXES)
    JB_REFUSE(JB_WRONG_COUNT, 0);
  p->buffers = k->buffers;
  p->operands = k->operands;
  p->sizes = (int64_t *)calloc(loop + 1, sizeof(int64_t));
  p->steps = (int64_t *)calloc((int64_t)k->buffers * loop + 1, sizeof(int64_t));
  if (p->sizes == NULL || p->steps == NULL) JB_REFUSE(JB_NO_MEMORY, 0);
  for (axis = 0; axis < loop; axis++) full[axis] = 1;
  for (int d = 0; d < k->dims; d++) first[d] = -1;
  for (int i = 0; i < k->buffers; i++) {
    const JB_Buffer *b = jb_buffer(frame, k->operands, i);
    if (jb_buffer_flaw(b) != NULL) JB_REFUSE(JB_NO_BUFFER, i);
    int core = k->handler ? (int)b->rank - loop : k->core_ranks[i];
    int known = k->handler ? (int)b->dtype : k->codes[i];
    if (core < 0 || b->rank != loop + core) JB_REFUSE(JB_WRONG_RANK, i);
    raw[i] = jb_itemsize((int)b->dtype);
    if (raw[i] == 0 || jb_itemsize(known) == 0) JB_REFUSE(JB_WRONG_TYPE, i);
    p->codes[i] = (int)b->dtype;
    p->ranks[i] = b->rank;
    p->shapes[i] = (int64_t *)malloc((b->rank + 1) * sizeof(int64_t));
    if (p->shapes[i] == NULL) JB_REFUSE(JB_NO_MEMORY, 0);
    p->elements[i] = 1;
    for (axis = 0; axis < b->rank; axis++) p->shapes[i][axis] = b->dims[axis];
    for (axis = 0; axis < loop; axis++) {
      if (b->dims[axis] == 1) continue;
      if (full[axis] != 1 && full[axis] != b->dims[axis]) JB_REFUSE(JB_WRONG_SIZE, i);
      full[axis] = b->dims[axis];
    }
    for (axis = 0; k->handler && axis < core; axis++) p->elements[i] *= b->dims[loop + axis];
    for (axis = 0; !k->handler && axis < core; axis++) {
      int d = k->core_dims[at + axis];
      int64_t size = b->dims[loop + axis];
      if (first[d] >= 0 && first[d] != size) JB_REFUSE(JB_WRONG_SIZE, i);
      first[d] = size;
      p->elements[i] *= size;
    }
    /* steps of the core axes, of the type that the function sees */
    intptr_t step = (intptr_t)jb_itemsize(known);
    for (axis = 0; !k->handler && axis < core; axis++) {
      int place = k->fortran ? axis : core - 1 - axis;
      p->core_steps[at + place] = step;
      step *= (intptr_t)b->dims[loop + place];
    }
    at += k->handler ? 0 : core;
    if (p->codes[i] != known) {
      p->convert[i] = i < k->operands ? jb_converter_of(p->codes[i], k->codes[i])
                                      : jb_converter_of(k->codes[i], p->codes[i]);
      if (p->convert[i] == NULL) JB_REFUSE(JB_WRONG_TYPE, i); /* float8, say */
      p->converts = 1;
    }
  }
  p->axes = at;
  for (int d = 0; d < k->dims; d++) p->dims[d] = (intptr_t)first[d];
  /* results have all loop dimensions in full */
  for (int i = k->operands; i < k->buffers; i++)
    for (axis = 0; axis < loop; axis++)
      if (p->shapes[i][axis] != full[axis]) JB_REFUSE(JB_WRONG_SIZE, i);
  /* loop dimensions from the last to the first, merged with the one behind where steps allow it */
  int64_t steps[JB_BUFFERS], kept[JB_BUFFERS];
  for (int i = 0; i < k->buffers; i++) {
    steps[i] = raw[i] * p->elements[i];
    p->bytes[i] = steps[i];
    for (axis = 0; axis < loop; axis++) p->bytes[i] *= p->shapes[i][axis];
  }
  for (int i = k->operands; i < k->buffers; i++)
    if (p->bytes[i] >= (1 << 22)) p->large = 1;
  p->total = 1;
  p->loops = 0;
  for (axis = loop - 1; axis >= 0; axis--) {
    int merges = p->loops > 0;
    p->total *= full[axis];
    for (int i = 0; i < k->buffers; i++) {
      kept[i] = p->shapes[i][axis] == 1 ? 0 : steps[i];
      steps[i] *= p->shapes[i][axis];
      if (merges && kept[i] != p->steps[i * loop + p->loops - 1] * p->sizes[p->loops - 1]) merges = 0;
    }
    if (full[axis] == 1) continue;
    if (merges) {
      p->sizes[p->loops - 1] *= full[axis];
      continue;
    }
    for (int i = 0; i < k->buffers; i++) p->steps[i * loop + p->loops] = kept[i];
    p->sizes[p->loops++] = full[axis]; /* the innermost first */
  }
  int64_t length = 0;
  for (int i = 0; i < k->buffers; i++) length += 3 + p->ranks[i];
  p->known = (int64_t *)malloc((length + 1) * sizeof(int64_t));
  if (p->known == NULL) JB_REFUSE(JB_NO_MEMORY, 0);
  length = 0;
  for (int i = 0; i < k->buffers; i++) {
    p->known[length++] = p->codes[i];
    p->known[length++] = p->ranks[i];
    p->known[length++] = p->bytes[i];
    for (axis = 0; axis < p->ranks[i]; axis++) p->known[length++] = p->shapes[i][axis];
  }
  if (p->converts || k->returns == JB_RETURNS_RESULT) {
    int64_t widest = 1;
    for (int i = 0; i < k->buffers; i++)
      if (p->convert[i] && p->elements[i] * jb_itemsize(k->codes[i]) > widest)
        widest = p->elements[i] * jb_itemsize(k->codes[i]);
    p->block = 16384 / widest;
    if (p->block < 1) p->block = 1;
    for (int i = 0; i < k->buffers; i++) {
      p->offsets[i] = p->memory;
      if (p->convert[i])
        p->memory += (p->block * p->elements[i] * jb_itemsize(k->codes[i]) + 63) & ~(int64_t)63;
    }
  }
  jb_plan_directly(k, p);
  return p;
#undef JB_REFUSE
}

/* Calling ------------------------------------------------------------------------------------ */

/* A function is called through a type that has all integer registers (and places on the stack)
   in front of all floating-point registers: in the ABIs of x86-64 (System V) and AArch64, each
   kind is counted for itself, and arguments that a function does not have do no harm. */
#define JB_I int64_t
#define JB_I6 JB_I, JB_I, JB_I, JB_I, JB_I, JB_I
#define JB_I32 JB_I6, JB_I6, JB_I6, JB_I6, JB_I6, JB_I, JB_I
#define JB_D8 double, double, double, double, double, double, double, double
#define JB_FEW i[0], i[1], i[2], i[3], i[4], i[5]
#define JB_MANY JB_FEW, i[6], i[7], i[8], i[9], i[10], i[11], i[12], i[13], i[14], i[15], i[16], i[17], \
  i[18], i[19], i[20], i[21], i[22], i[23], i[24], i[25], i[26], i[27], i[28], i[29], i[30], i[31]
#define JB_EIGHT d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]
#define JB_CALL(type) \
  (few ? reals ? ((type(*)(JB_I6, JB_D8))f)(JB_FEW, JB_EIGHT) : ((type(*)(JB_I6))f)(JB_FEW) \
       : ((type(*)(JB_I32, JB_D8))f)(JB_MANY, JB_EIGHT))

static inline void jb_call(
    void *f, const int64_t *i, int integers, const double *d, int reals, int code, char *to) {
  int few = integers <= 6;
  switch (code) {
    case 0: ((void)JB_CALL(int64_t)); return;
    case JB_DataType_F64: { double v = JB_CALL(double); memcpy(to, &v, 8); return; }
    case JB_DataType_F32: { float v = JB_CALL(float); memcpy(to, &v, 4); return; }
    case JB_DataType_C128: { double complex v = JB_CALL(double complex); memcpy(to, &v, 16); return; }
    case JB_DataType_C64: { float complex v = JB_CALL(float complex); memcpy(to, &v, 8); return; }
    default: { int64_t v = JB_CALL(int64_t); memcpy(to, &v, jb_itemsize(code)); return; }
  }
}

static inline int64_t jb_integer(const int64_t *memory, int bytes) {
  int8_t one; int16_t two; int32_t four;
  switch (bytes) {
    case 1: memcpy(&one, memory, 1); return one;
    case 2: memcpy(&two, memory, 2); return two;
    case 4: memcpy(&four, memory, 4); return four;
    default: return *memory;
  }
}

/* Call a function for `count` iterations, one after the other. */
static void jb_call_slots(
    const jb_kernel *k, const jb_plan *p, char *const *at, const intptr_t *step, int64_t count,
    int64_t begin, jb_failure *failure) {
  int64_t i[JB_INTEGERS_AT_MOST] = {0}, refs[JB_SLOTS][2], status;
  int64_t failed, copied = 0;
  char *copies = NULL;
  int status_bytes = k->returns == JB_RETURNS_STATUS ? jb_itemsize(k->result_code) : 4;
  double d[JB_REALS + 2] = {0};
  int code = k->returns == JB_RETURNS_NOTHING ? 0 : k->result_code;
  char *to = NULL;
  for (int s = 0; s < k->slots; s++)
    if (k->slot[s].longer != NULL) copied += (k->slot[s].size + 15) & ~(int64_t)15;
  if (copied > 0 && (copies = (char *)malloc((size_t)copied)) == NULL) {
    jb_fail(failure, JB_NO_MEMORY);
    return;
  }
  for (int64_t n = 0; n < count; n++) {
    if (k->may_raise && jb_raised()) break; /* by the iteration before, or a chunk */
    int integers = 0, reals = 0;
    char *copy = copies;
    status = 0;
    for (int s = 0; s < k->slots; s++) {
      const jb_slot *slot = &k->slot[s];
      char *place = slot->kind <= JB_SLOT_ELEMENT ? at[slot->index] + n * step[slot->index] : NULL;
      switch (slot->kind) {
        case JB_SLOT_BUFFER: i[integers++] = (int64_t)(intptr_t)place; break;
        case JB_SLOT_ELEMENT: jb_pass(place, slot->code, i, &integers, d, &reals); break;
        case JB_SLOT_DIM: i[integers++] = p->dims[slot->index]; break;
        case JB_SLOT_DIM_POINTER:
          refs[s][0] = p->dims[slot->index]; /* little-endian: 32 bits of it serve, too */
          i[integers++] = (int64_t)(intptr_t)refs[s];
          break;
        case JB_SLOT_VALUE: jb_pass(slot->value, slot->code, i, &integers, d, &reals); break;
        case JB_SLOT_VALUE_POINTER:
          if (slot->longer != NULL) {
            memcpy(copy, slot->longer, (size_t)slot->size);
            i[integers++] = (int64_t)(intptr_t)copy;
            copy += (slot->size + 15) & ~(int64_t)15;
          } else {
            memcpy(refs[s], slot->value, 16);
            i[integers++] = (int64_t)(intptr_t)refs[s];
          }
          break;
        case JB_SLOT_STATUS:
          status_bytes = jb_itemsize(slot->code);
          i[integers++] = (int64_t)(intptr_t)&status;
          break;
        default: i[integers++] = (int64_t)(intptr_t)k->data; break;
      }
    }
    if (k->returns == JB_RETURNS_RESULT) to = at[k->buffers - 1] + n * step[k->buffers - 1];
    else if (k->returns == JB_RETURNS_STATUS) to = (char *)&status;
    jb_call(k->function, i, integers, d, reals, code, to);
    failed = jb_integer(&status, status_bytes);
    if (failed != 0) jb_fail_at(failure, begin + n, failed);
  }
  free(copies);
}

/* Call an XLA FFI handler with a frame for each iteration: buffers without loop dimensions. The
   copies are of what we know of XLA's structs, which may have grown since, and say so. */
static void jb_call_handler(
    const jb_kernel *k, char *const *at, const intptr_t *step, int64_t count, int64_t begin,
    jb_failure *failure) {
  JB_CallFrame frame = *failure->frame;
  JB_Buffer buffers[JB_BUFFERS];
  void *pointers[JB_BUFFERS];
  int whole = frame.struct_size >= sizeof frame;
  if (frame.struct_size > sizeof frame) frame.struct_size = sizeof frame;
  for (int b = 0; b < k->buffers; b++) {
    buffers[b] = *jb_buffer(failure->frame, k->operands, b);
    if (buffers[b].struct_size > sizeof *buffers) buffers[b].struct_size = sizeof *buffers;
    buffers[b].rank -= k->loop;
    buffers[b].dims += k->loop;
    pointers[b] = &buffers[b];
  }
  frame.args.args = pointers;
  frame.rets.rets = pointers + k->operands;
  frame.attrs = k->attributes;
  for (int64_t n = 0; n < count; n++) {
    for (int b = 0; b < k->buffers; b++) buffers[b].data = at[b] + n * step[b];
    JB_Error *error = ((JB_Error * (*)(JB_CallFrame *)) k->function)(&frame);
    if (error == NULL && whole && frame.future != NULL) {
      jb_fail(failure, JB_FUTURE); /* its work would go on when the buffers are somebody else's */
      return;
    }
    if (error == NULL) continue;
    if (failure->error == NULL && jb_first_error(failure, error)) {
      failure->iteration = begin + n;
    } else {
      jb_forget(frame.api, error);
    }
    return;
  }
}

static inline void jb_call_kernel(
    const jb_kernel *k, const jb_plan *p, char *const *at, const intptr_t *step, int64_t count,
    int64_t begin, jb_failure *failure) {
  intptr_t dims[JB_DIMS + 1], steps[JB_BUFFERS + JB_AXES];
  char *bases[JB_BUFFERS]; /* loops may move them on, as SciPy's do */
  if (k->handler) {
    jb_call_handler(k, at, step, count, begin, failure);
    return;
  }
  if (!k->inner_loop) {
    jb_call_slots(k, p, at, step, count, begin, failure);
    return;
  }
  if (k->may_raise && jb_raised()) return;
  dims[0] = (intptr_t)count;
  for (int d = 0; d < k->dims; d++) dims[d + 1] = p->dims[d];
  for (int b = 0; b < k->buffers; b++) {
    bases[b] = at[b];
    steps[b] = step[b];
  }
  for (int a = 0; a < p->axes; a++) steps[k->buffers + a] = p->core_steps[a];
  ((jb_inner_loop)k->function)(bases, dims, steps, k->data);
}

/* A call whose plan says that this will do. */
static inline void jb_run_directly(const jb_kernel *k, const jb_plan *p, char **bases) {
  if (k->inner_loop) {
    ((jb_inner_loop)k->function)(bases, p->all_dims, p->all_steps, k->data);
    return;
  }
  int64_t i[6];
#pragma GCC unroll 6
  for (int s = 0; s < 6; s++)
    i[s] = p->buffer[s] < 0 ? p->arguments[s] : (int64_t)(intptr_t)bases[p->buffer[s]];
  ((void (*)(JB_I6))k->function)(JB_FEW);
}

/* Iterations that differ in one loop dimension only. */
static void jb_run_line(
    const jb_kernel *k, const jb_plan *p, char *const *at, const intptr_t *step, int64_t count,
    int64_t begin, char *memory, jb_failure *failure) {
  char *now[JB_BUFFERS];
  intptr_t seen[JB_BUFFERS];
  int64_t most = p->converts ? p->block : count;
  for (int64_t done = 0; done < count; done += most) {
    int64_t n = count - done < most ? count - done : most;
    for (int b = 0; b < k->buffers; b++) {
      now[b] = at[b] + done * step[b];
      seen[b] = step[b];
      if (p->convert[b] == NULL) continue;
      int64_t size = p->elements[b] * jb_itemsize(k->codes[b]);
      char *to = memory + p->offsets[b];
      seen[b] = step[b] == 0 && b < k->operands ? 0 : size;
      if (b < k->operands) {
        if (step[b] == 0) {
          if (done == 0) p->convert[b](now[b], to, p->elements[b]);
        } else if (step[b] == p->elements[b] * jb_itemsize(p->codes[b])) {
          p->convert[b](now[b], to, n * p->elements[b]);
        } else {
          for (int64_t j = 0; j < n; j++) p->convert[b](now[b] + j * step[b], to + j * size, p->elements[b]);
        }
      }
      now[b] = to;
    }
    for (int b = k->operands; b < k->buffers; b++) {
      int from = k->source[b];
      int64_t size = p->elements[b] * jb_itemsize(k->codes[b]);
      if (from < 0) continue;
      for (int64_t j = 0; j < n; j++) {
        char *source = now[from] + j * seen[from], *target = now[b] + j * seen[b];
        if (source != target) memmove(target, source, size);
      }
    }
    jb_call_kernel(k, p, now, seen, n, begin + done, failure);
    for (int b = k->operands; b < k->buffers; b++) {
      if (p->convert[b] == NULL) continue;
      int64_t size = p->elements[b] * jb_itemsize(k->codes[b]);
      if (step[b] == p->elements[b] * jb_itemsize(p->codes[b])) {
        p->convert[b](now[b], at[b] + done * step[b], n * p->elements[b]);
      } else {
        for (int64_t j = 0; j < n; j++)
          p->convert[b](now[b] + j * size, at[b] + (done + j) * step[b], p->elements[b]);
      }
    }
  }
}

/* Iterations begin to end - 1 over all loop dimensions. */
static void jb_run_range(
    const jb_kernel *k, const jb_plan *p, char *const *bases, int64_t begin, int64_t end,
    jb_failure *failure) {
  char *at[JB_BUFFERS], *memory = NULL;
  intptr_t step[JB_BUFFERS] = {0};
  int loop = k->loop;
  if (p->memory) {
    memory = (char *)aligned_alloc(64, (size_t)p->memory);
    if (memory == NULL) {
      jb_fail(failure, JB_NO_MEMORY);
      return;
    }
  }
  int64_t inner = p->loops ? p->sizes[0] : 1;
  for (int b = 0; b < k->buffers; b++) 
    step[b] = p->loops ? (intptr_t)p->steps[b * loop]
                       : (intptr_t)(p->elements[b] * jb_itemsize(p->codes[b]));
  while (begin < end) {
    int64_t rest = begin / inner, within = begin % inner;
    int64_t count = inner - within < end - begin ? inner - within : end - begin;
    for (int b = 0; b < k->buffers; b++) at[b] = bases[b] + within * step[b];
    for (int a = 1; a < p->loops; a++) {
      int64_t index = rest % p->sizes[a];
      rest /= p->sizes[a];
      for (int b = 0; b < k->buffers; b++) at[b] += index * p->steps[b * loop + a];
    }
    jb_run_line(k, p, at, step, count, begin, memory, failure);
    begin += count;
  }
  free(memory);
}

/* Threads ------------------------------------------------------------------------------------ */

/* Chunks of a size that follows from the operands alone, so that results do not depend on the
   number of threads; a multiple of 64 iterations where that keeps vectorised loops in step. */
static inline int64_t jb_chunk_size(const jb_kernel *k, const jb_plan *p) {
  int64_t size = (p->total + 63) / 64, core = 1;
  for (int i = 0; i < p->buffers; i++)
    if (p->elements[i] > core) core = p->elements[i];
  return k->inner_loop && core == 1 ? (size + 63) / 64 * 64 : size;
}

#endif
