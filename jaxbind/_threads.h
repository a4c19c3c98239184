/* Work in chunks on the runtime's own threads, by a pattern that cannot deadlock.

   Handlers that wait for helper tasks to start can fill the pool and wait for ever. Here the
   caller works, too, and waits only for chunks that somebody has begun. A helper that starts
   late finds nothing left to do; the job lives until the last of them has looked. */

#ifndef JAXBIND_THREADS_H_
#define JAXBIND_THREADS_H_

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "xla_ffi.h"

/* Below this, in nanoseconds, the rest of a call is not worth another thread. */
enum { JB_WORTH_A_THREAD = 20000 };

static inline int64_t jb_now(void) { /* nanoseconds */
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

typedef void (*jb_work)(void *data, int64_t chunk);

typedef struct {
  jb_work work;
  void *data; /* valid while a chunk is at work */
  int64_t count;
  _Atomic(int64_t) next, done;
  _Atomic(int) holders;
  pthread_mutex_t mutex;
  pthread_cond_t all_done;
} jb_job;

static inline void jb_job_drop(jb_job *job) {
  if (atomic_fetch_sub(&job->holders, 1) == 1) {
    pthread_mutex_destroy(&job->mutex);
    pthread_cond_destroy(&job->all_done);
    free(job);
  }
}

static inline void jb_job_work(jb_job *job) {
  for (;;) {
    int64_t chunk = atomic_fetch_add(&job->next, 1);
    if (chunk >= job->count) return;
    job->work(job->data, chunk);
    if (atomic_fetch_add(&job->done, 1) + 1 == job->count) {
      pthread_mutex_lock(&job->mutex);
      pthread_cond_broadcast(&job->all_done);
      pthread_mutex_unlock(&job->mutex);
    }
  }
}

static void jb_job_help(void *data) {
  jb_job *job = (jb_job *)data;
  jb_job_work(job);
  jb_job_drop(job);
}

/* Discard an error of the runtime's: the caller then does the work alone. */
static inline void jb_forget(const JB_Api *api, JB_Error *error) {
  JB_Error_Destroy_Args args = {sizeof(args), NULL, error};
  api->Error_Destroy(&args);
}

/* How many threads the runtime has; 1 if it does not say. */
static inline int64_t jb_runtime_threads(const JB_Api *api, JB_ExecutionContext *ctx) {
  int64_t found = 1;
  JB_ThreadPool_NumThreads_Args args = {sizeof(args), NULL, ctx, &found};
  if (ctx == NULL || api == NULL || api->ThreadPool_NumThreads == NULL) return 1;
  JB_Error *error = api->ThreadPool_NumThreads(&args);
  if (error != NULL) {
    jb_forget(api, error);
    return 1;
  }
  return found < 1 ? 1 : found;
}

/* Do chunks 0 to count - 1, with up to `helpers` other threads; returns when all are done. */
static inline void jb_in_chunks(
    const JB_Api *api, JB_ExecutionContext *ctx, int64_t helpers, int64_t count, jb_work work,
    void *data) {
  jb_job *job = helpers > 0 && count > 1 ? (jb_job *)calloc(1, sizeof(jb_job)) : NULL;
  if (job == NULL) {
    for (int64_t chunk = 0; chunk < count; chunk++) work(data, chunk);
    return;
  }
  job->work = work;
  job->data = data;
  job->count = count;
  atomic_store(&job->holders, 1);
  pthread_mutex_init(&job->mutex, NULL);
  pthread_cond_init(&job->all_done, NULL);
  if (helpers > count - 1) helpers = count - 1;
  for (int64_t i = 0; i < helpers; i++) {
    JB_ThreadPool_Schedule_Args args = {sizeof(args), NULL, ctx, jb_job_help, job};
    atomic_fetch_add(&job->holders, 1);
    JB_Error *error = api->ThreadPool_Schedule(&args);
    if (error != NULL) {
      jb_forget(api, error);
      jb_job_drop(job);
      break;
    }
  }
  jb_job_work(job);
  pthread_mutex_lock(&job->mutex);
  while (atomic_load(&job->done) < count) pthread_cond_wait(&job->all_done, &job->mutex);
  pthread_mutex_unlock(&job->mutex);
  jb_job_drop(job);
}

#endif
