"""Call frames: metadata, attributes, errors, and calls in flight."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libc.string cimport memcmp, strlen
from posix.unistd cimport sleep

import time

from jaxbind._abi cimport (
    JB_AttrType_STRING,
    JB_ByteSpan,
    JB_CallFrame,
    JB_Error,
    JB_Error_Code,
    JB_Error_Create_Args,
    JB_ExecutionStage_INSTANTIATE,
    JB_Extension_Metadata,
    JB_Metadata,
    JB_Metadata_Extension,
    JB_State_Get_Args,
    JB_State_Set_Args,
    JB_TypeId,
)

cdef extern from *:
    """
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
    """
    void jb_add(long n) noexcept nogil
    long jb_count() noexcept nogil
    int jb_is_leaving() noexcept nogil
    int jb_is_stray() noexcept nogil
    void jb_forget_calls() noexcept nogil
    void jb_keep_strays_waiting() noexcept nogil
    void jb_set_leaving() noexcept nogil


REFUSED = "jaxbind: the interpreter is leaving"
cdef bytes refused = REFUSED.encode()
cdef const char* refused_text = refused


cdef JB_Error* refuse(JB_CallFrame* frame) noexcept nogil:
    return make_error(frame, 1, refused_text)


cdef bint answered_metadata(JB_CallFrame* frame, JB_TypeId* state) noexcept nogil:
    cdef JB_Metadata_Extension* extension = <JB_Metadata_Extension*>frame.extension_start
    cdef JB_Metadata* metadata
    if extension == NULL or extension.extension_base.type != JB_Extension_Metadata:
        return False
    metadata = extension.metadata
    if metadata == NULL or frame.api == NULL:
        return True
    # The runtime's own version: it refuses any that is newer than it.
    metadata.api_version.major_version = frame.api.api_version.major_version
    metadata.api_version.minor_version = frame.api.api_version.minor_version
    metadata.traits = 0
    if state != NULL:
        metadata.state_type_id = state[0]
    return True


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


cdef JB_Error* get_state(JB_CallFrame* frame, JB_TypeId* type_id, void** state) noexcept nogil:
    cdef JB_State_Get_Args args
    cdef JB_Error* error
    args.struct_size = sizeof(JB_State_Get_Args)
    args.extension_start = NULL
    args.ctx = frame.ctx
    args.stage = JB_ExecutionStage_INSTANTIATE
    args.type_id = type_id
    args.state = NULL
    error = frame.api.State_Get(&args)
    state[0] = args.state
    return error


cdef bint enter_call() noexcept nogil:
    jb_add(1)
    if jb_is_leaving():
        leave_call()
        return False
    return True


cdef void leave_call() noexcept nogil:
    jb_add(-1)
    while jb_is_stray():
        sleep(3600)  # until the process ends


cdef bint is_leaving() noexcept nogil:
    return jb_is_leaving()


def drain():
    """Refuse new calls and wait, without the GIL, until those in flight have ended.

    Runs when the interpreter leaves: a call that took the GIL after that would hang or abort
    the process.
    """
    jb_set_leaving()
    jb_keep_strays_waiting()
    time.sleep(0.001)
    while jb_count() > 0:
        time.sleep(0.0005)


def forget_calls():
    """In a child of fork, which has not the threads of its parent's calls."""
    jb_forget_calls()
