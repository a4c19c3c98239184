/* Calls in flight, and how they end when the interpreter leaves.

   Included by one module only (`_sites`): the counts are its own. */

#ifndef JAXBIND_FLIGHT_H_
#define JAXBIND_FLIGHT_H_

#include <Python.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

/* Calls in flight, counted per thread: an atomic counter that all threads share would cost
   a tenth of a call. A thread writes its count and then reads whether we are leaving; the one
   that leaves sets that, waits longer than any processor delays a write, and then reads the
   counts: so it sees every call that did not see it. */
typedef struct jb_counter {
  _Atomic(long) calls;
  _Atomic(int) taken;
  struct jb_counter *next;
} jb_counter;

static _Atomic(jb_counter *) jb_counters;
static _Atomic(int) jb_leaving;
static unsigned long jb_leaver;
static pthread_key_t jb_key;
static pthread_once_t jb_once = PTHREAD_ONCE_INIT;
/* not looked up by a function of the dynamic linker, which takes 5 ns twice a call */
#if defined(__GLIBC__)
__attribute__((tls_model("initial-exec")))
#endif
static _Thread_local jb_counter *jb_mine;

static void jb_thread_ends(void *counter) {
  atomic_store(&((jb_counter *)counter)->taken, 0); /* for another thread */
}
static void jb_make_key(void) { (void)pthread_key_create(&jb_key, jb_thread_ends); }

static jb_counter *jb_new_counter(void) {
  jb_counter *c;
  int none = 0;
  pthread_once(&jb_once, jb_make_key);
  for (c = atomic_load(&jb_counters); c; c = c->next, none = 0)
    if (atomic_compare_exchange_strong(&c->taken, &none, 1)) break;
  if (!c) {
    c = (jb_counter *)calloc(1, sizeof(jb_counter));
    if (!c) abort();
    atomic_store(&c->taken, 1);
    c->next = atomic_load(&jb_counters);
    while (!atomic_compare_exchange_weak(&jb_counters, &c->next, c)) {}
  }
  pthread_setspecific(jb_key, c);
  return jb_mine = c;
}

static inline void jb_add(long n) {
  jb_counter *c = jb_mine ? jb_mine : jb_new_counter();
  long calls = atomic_load_explicit(&c->calls, memory_order_relaxed);
  atomic_store_explicit(&c->calls, calls + n, memory_order_release);
}
static inline int jb_is_leaving(void) {
  return atomic_load_explicit(&jb_leaving, memory_order_acquire);
}
/* Whether this thread may take the GIL, outside of a call. The one that leaves may, until the
   interpreter is taken apart: JAX drops its programs then, and what they keep alive must go. */
static inline int jb_may_take_gil(void) {
  return !jb_is_leaving()
    || (PyThread_get_thread_ident() == jb_leaver && Py_IsInitialized());
}
static long jb_count(void) {
  long total = 0;
  for (jb_counter *c = atomic_load(&jb_counters); c; c = c->next)
    total += atomic_load(&c->calls);
  return total;
}
/* After a fork: the threads of the calls in flight are not in this process. */
static void jb_forget_calls(void) {
  for (jb_counter *c = atomic_load(&jb_counters); c; c = c->next) atomic_store(&c->calls, 0);
}
static void jb_set_leaving(void) {
  jb_leaver = PyThread_get_thread_ident();
  atomic_store(&jb_leaving, 1);
}
/* Whether this is a daemon thread of Python's that goes on while the interpreter leaves. It
   would be killed on its way back, inside of XLA's frames, and take the process with it. */
static inline int jb_is_stray(void) {
  return jb_is_leaving() && PyGILState_GetThisThreadState() != NULL
    && PyThread_get_thread_ident() != jb_leaver;
}

/* Python ends such a thread by pthread_exit, where it next asks for the GIL. In a frame of C++
   that is noexcept (JAX has many) this is std::terminate: that of the whole process. The
   thread waits for the end of the process instead; if that does not come, something else
   was wrong. */
static void (*jb_terminate)(void);
static void jb_wait_for_the_end(void) {
  if (jb_is_leaving() && PyThread_get_thread_ident() != jb_leaver) sleep(60);
  if (jb_terminate) jb_terminate();
  abort();
}
static void jb_keep_strays_waiting(void) {
#if defined(__linux__) && defined(RTLD_NOLOAD)
  typedef void (*handler)(void);
  void *library = dlopen("libstdc++.so.6", RTLD_LAZY | RTLD_NOLOAD);
  handler (*set)(handler) = NULL;
  if (library) *(void **)&set = dlsym(library, "_ZSt13set_terminatePFvvE");
  if (set) jb_terminate = set(jb_wait_for_the_end);
#endif
}

static inline void jb_leave_call(void) {
  jb_add(-1);
  while (__builtin_expect(jb_is_stray(), 0)) sleep(3600); /* until the process ends */
}

/* False after the interpreter has begun to leave. */
static inline int jb_enter_call(void) {
  jb_add(1);
  if (__builtin_expect(!jb_is_leaving(), 1)) return 1;
  jb_leave_call();
  return 0;
}

#endif
