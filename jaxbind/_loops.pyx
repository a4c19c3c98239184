"""Call sites that call a compiled loop or kernel, without Python and without the GIL.

How is written in C, in ``_loops.h`` (what is called over which memory) and ``_threads.h``.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, intptr_t
from libc.string cimport memcpy

cimport numpy as cnp

from functools import partial

from jaxbind import _dtypes, _errors

from jaxbind._attributes cimport Attributes
from jaxbind._frame cimport (
    jb_buffer,
    jb_buffer_flaw,
    jb_fits,
    jb_fp_enter,
    jb_fp_leave,
    jb_fpenv,
    make_error,
)
from jaxbind._huge cimport JB_ADVISE_HUGE
from jaxbind._sites cimport Frame, Site, SiteHead, is_watching, tell, watch_call
from jaxbind._threads cimport WORTH_A_THREAD, jb_in_chunks, jb_now, jb_runtime_threads
from jaxbind._views cimport whole_buffer
from jaxbind._abi cimport (
    JB_Api,
    JB_ArgType,
    JB_ArgType_BUFFER,
    JB_Attrs,
    JB_Buffer,
    JB_CallFrame,
    JB_DataType,
    JB_Error,
    JB_Error_Code_INTERNAL,
    JB_Error_GetMessage_Args,
    JB_RetType,
    JB_RetType_BUFFER,
)

cnp.import_array()

cdef extern from "_loops.h" nogil:
    enum:
        JB_BUFFERS, JB_AXES, JB_DIMS, JB_SLOTS, JB_INTEGERS_AT_MOST, JB_REALS
        JB_FINE, JB_NO_MEMORY, JB_WRONG_COUNT, JB_NO_BUFFER, JB_WRONG_RANK, JB_WRONG_TYPE
        JB_WRONG_SIZE, JB_STATUS, JB_FUTURE
    ctypedef struct jb_slot:
        int kind, index, code
        char value[16]
        const char* longer
        int64_t size
    ctypedef struct jb_plan:
        int64_t total
        int64_t bytes[1]
        int direct, large
        int64_t* known
    ctypedef struct jb_kernel:
        void* function
        void* data
        int inner_loop, handler
        JB_Attrs attributes
        int buffers, operands, loop
        int codes[1]
        int core_ranks[1]
        int core_dims[1]
        int dims
        int source[1]
        int fortran
        int slots, returns, result_code
        jb_slot slot[1]
        int may_raise
        int64_t threads
        jb_plan* plan
    ctypedef struct jb_failure:
        int kind, buffer
        void* exception
        const JB_CallFrame* frame
        JB_Error* error
        int64_t iteration, status
    void jb_start(jb_failure*, const JB_CallFrame*)
    jb_plan* jb_plan_of(const jb_kernel*, const JB_CallFrame*, jb_failure*)
    void jb_plan_free(jb_plan*)
    void jb_run_directly(const jb_kernel*, const jb_plan*, char**)
    void jb_run_range(
        const jb_kernel*, const jb_plan*, char**, int64_t, int64_t, jb_failure*)
    int64_t jb_chunk_size(const jb_kernel*, const jb_plan*)
    void jb_forget(const JB_Api*, JB_Error*)

cdef extern from *:
    """
    static inline jb_plan *jb_plan_kept(jb_kernel *k) {
        return atomic_load_explicit(&k->plan, memory_order_acquire);
    }
    static inline int jb_plan_keep(jb_kernel *k, jb_plan *plan) {
        jb_plan *none = NULL;
        return atomic_compare_exchange_strong(&k->plan, &none, plan);
    }
    """
    jb_plan* jb_plan_kept(jb_kernel*) noexcept nogil
    bint jb_plan_keep(jb_kernel*, jb_plan*) noexcept nogil

cdef extern from "Python.h":
    ctypedef enum PyGILState_STATE:
        pass
    ctypedef struct PyThreadState:
        pass
    void* PyGILState_GetThisThreadState() noexcept nogil
    PyGILState_STATE PyGILState_Ensure() noexcept nogil
    void PyGILState_Release(PyGILState_STATE) noexcept nogil
    PyThreadState* PyEval_SaveThread() noexcept nogil
    void PyEval_RestoreThread(PyThreadState*) noexcept nogil

#: what fits into one call
MOST_BUFFERS = JB_BUFFERS
MOST_AXES = JB_AXES
MOST_DIMS = JB_DIMS
MOST_SLOTS = JB_SLOTS
MOST_INTEGERS = JB_INTEGERS_AT_MOST
MOST_REALS = JB_REALS


cdef struct Chunks:
    const jb_kernel* kernel
    const jb_plan* plan
    char** bases
    int64_t first, size
    jb_failure* failure


cdef class LoopSite(Site):
    """One call site of a compiled program: a compiled function, and how it is called."""

    cdef jb_kernel kernel
    cdef object owner
    cdef Attributes attributes
    cdef str label
    cdef list names
    cdef list slots  # which hold the long values

    def __cinit__(self, *args, **kwargs):
        self.kernel.plan = NULL

    def __dealloc__(self):
        jb_plan_free(self.kernel.plan)

    def __init__(
        self, *, str label, list names, owner, function, data, bint inner_loop, int operands,
        int loop, list codes, list cores, int dims, list source, bint fortran, list slots,
        int returns, int result_code, bint may_raise, int threads,
        Attributes attributes=None,
    ):
        cdef jb_kernel* k = &self.kernel
        cdef int i, at = 0
        cdef bytes value
        self.label = label
        self.names = names
        self.owner = owner  # of what the pointers point to
        k.function = <void*><intptr_t>function
        k.data = <void*><intptr_t>data
        k.inner_loop = inner_loop
        k.handler = attributes is not None
        if attributes is not None:
            self.attributes = attributes
            k.attributes = attributes.described
        k.buffers = len(codes)
        k.operands = operands
        k.loop = loop
        k.dims = dims
        k.fortran = fortran
        k.slots = len(slots)
        k.returns = returns
        k.result_code = result_code
        k.may_raise = may_raise
        k.threads = threads
        if (
            k.buffers > JB_BUFFERS or dims > JB_DIMS or len(slots) > JB_SLOTS
            or sum(map(len, cores)) > JB_AXES
        ):
            raise ValueError(f"{label}: too many arguments or dimensions for a compiled call")
        for i in range(k.buffers):
            k.codes[i] = codes[i]
            k.source[i] = source[i]
            k.core_ranks[i] = len(cores[i])
            for dim in cores[i]:
                k.core_dims[at] = dim
                at += 1
        for i, (kind, index, code, value) in enumerate(slots):
            k.slot[i].kind = kind
            k.slot[i].index = index
            k.slot[i].code = code
            if len(value) > 16:
                k.slot[i].longer, k.slot[i].size = <char*>value, len(value)
            else:
                memcpy(k.slot[i].value, <char*>value, len(value))
        self.slots = slots
        self.head.body = <void*>k
        self.head.execute = execute_loops

    def on_arrays(self, list arrays):
        """Call it on NumPy arrays, results among them, as XLA would on its buffers.

        The arrays are C-contiguous, with all loop dimensions in front.
        """
        cdef int i, n = self.kernel.buffers
        cdef JB_CallFrame frame
        cdef JB_Buffer buffers[64]
        cdef void* pointers[64]
        cdef JB_ArgType given[64]
        cdef JB_RetType made[64]
        cdef jb_failure failure
        cdef cnp.ndarray array
        for i in range(n):
            array = arrays[i]
            buffers[i].struct_size = sizeof(JB_Buffer)
            buffers[i].dtype = <JB_DataType><int>_dtypes.CODE_OF[array.dtype]
            buffers[i].data = cnp.PyArray_DATA(array)
            buffers[i].rank = cnp.PyArray_NDIM(array)
            buffers[i].dims = <int64_t*>cnp.PyArray_DIMS(array)
            pointers[i] = &buffers[i]
            given[i] = JB_ArgType_BUFFER
            made[i] = JB_RetType_BUFFER
        if self.kernel.handler:
            raise TypeError(f"{self.label}: XLA alone can call its handlers")
        frame.api = NULL
        frame.ctx = NULL
        frame.args.size = self.kernel.operands
        frame.args.types = given
        frame.args.args = pointers
        frame.rets.size = n - self.kernel.operands
        frame.rets.types = made
        frame.rets.rets = pointers + self.kernel.operands
        with nogil:
            run(&self.kernel, &frame, &failure)
        if self.kernel.may_raise:
            raise_pending()
        if failure.kind != JB_FINE:
            raise RuntimeError(self.describe(&frame, &failure)[1])

    cdef JB_Error* run_watched(self, JB_CallFrame* frame) noexcept:
        """One call under `jaxbind.debug`."""
        cdef jb_failure failure
        cdef JB_Buffer* buffer
        cdef JB_Error* error
        cdef int i
        cdef bint shared = self.kernel.handler
        try:
            whole = []
            for i in range(self.kernel.buffers):
                buffer = jb_buffer(frame, self.kernel.operands, i)
                whole.append(whole_buffer(buffer, _dtypes.CODES[<int>buffer.dtype]))
            operands, results = whole[:self.kernel.operands], whole[self.kernel.operands:]
            for x in operands:
                for y in results:
                    shared = shared or (x.size and x.ctypes.data == y.ctypes.data)
            watch = watch_call(self.names, operands, results, shared)
            with nogil:
                run(&self.kernel, frame, &failure)
                error = outcome(&self.kernel, frame, &self.head, &failure)
            if error != NULL:
                return error
            if watch is not None:
                watch.check(partial(self.once_more, Frame.of(frame)))
        except BaseException as exception:
            return self.told(frame, exception)
        return NULL

    def once_more(self, Frame given):
        cdef jb_failure failure
        with nogil:
            run(&self.kernel, given.frame, &failure)
        if failure.error != NULL:
            jb_forget(given.frame.api, failure.error)
        elif self.kernel.may_raise:
            raise_kept(&failure)
        if failure.error != NULL or failure.kind != JB_FINE:
            raise _errors.ContractError("failed when jaxbind.debug called it once more")

    cdef JB_Error* told(self, JB_CallFrame* frame, exception) noexcept:
        try:
            operands = self.operands_of(frame)
        except BaseException:
            operands = ["?"] * len(self.names)
        return tell(frame, self.label, self.names, operands, 0, 1, exception, [])

    cdef list operands_of(self, JB_CallFrame* frame):
        """Dtypes and core shapes, as errors show them."""
        cdef JB_Buffer* buffer
        cdef int64_t i, a
        operands = []
        if not can_be_counted(&self.kernel, frame):
            return ["?"] * len(self.names)
        for i in range(self.kernel.operands):
            buffer = jb_buffer(frame, self.kernel.operands, i)
            if jb_buffer_flaw(buffer) != NULL:
                operands.append("?")
                continue
            shape = [buffer.dims[a] for a in range(self.kernel.loop, buffer.rank)]
            dtype = _dtypes.CODES.get(<int>buffer.dtype, "?")
            operands.append(f"{dtype}[{','.join(map(str, shape))}]")
        return operands

    cdef tuple describe(self, JB_CallFrame* frame, jb_failure* failure):
        """Status code and text of what went wrong."""
        operands = self.operands_of(frame)
        name = f"buffer {failure.buffer}"
        flaw = self.flaw(frame, failure.buffer) if failure.kind == JB_NO_BUFFER else ""
        said = {
            JB_NO_MEMORY: "could not allocate memory",
            JB_WRONG_COUNT: "got other numbers of operands and results than it was compiled for",
            JB_NO_BUFFER: f"got {flaw} for {name}",
            JB_WRONG_RANK: f"got {name} of another rank than it was compiled for",
            JB_WRONG_TYPE: f"got {name} of a type that it cannot convert",
            JB_WRONG_SIZE: f"got {name} of a size that contradicts its signature",
            JB_STATUS: f"reported failure: status {failure.status}",
            JB_FUTURE: "is an asynchronous handler (it sets a future), which is not supported",
        }[failure.kind]
        return _errors.kernel_message(
            self.label, self.names, operands, failure.iteration, said,
            failure.kind == JB_STATUS and self.kernel.loop > 0)

    cdef str flaw(self, JB_CallFrame* frame, int index):
        cdef const char* text = NULL
        if can_be_counted(&self.kernel, frame):
            text = jb_buffer_flaw(jb_buffer(frame, self.kernel.operands, index))
        return "something wrong" if text == NULL else text.decode()

    cdef JB_Error* report(self, JB_CallFrame* frame, jb_failure* failure) noexcept:
        try:
            code, text = self.describe(frame, failure)
            return make_error(frame, code, text.encode("utf-8", "replace").replace(b"\0", b"?"))
        except BaseException:
            return make_error(
                frame, JB_Error_Code_INTERNAL,
                b"jaxbind: a call failed, and so did describing why")

    cdef JB_Error* refused(self, JB_CallFrame* frame, jb_failure* failure) noexcept:
        """The error of a handler, told as that of its binding."""
        cdef JB_Error_GetMessage_Args given
        cdef JB_Error* told
        given.struct_size = sizeof(JB_Error_GetMessage_Args)
        given.extension_start = NULL
        given.error = failure.error
        given.message = NULL
        given.errc = JB_Error_Code_INTERNAL  # older runtimes do not tell
        frame.api.Error_GetMessage(&given)
        try:
            said = b"no message" if given.message == NULL else given.message
            text = _errors.kernel_message(
                self.label, self.names, self.operands_of(frame), failure.iteration,
                f"reported failure: {said.decode('utf-8', 'replace')}", self.kernel.loop > 0)[1]
            told = make_error(frame, given.errc, text.encode("utf-8", "replace"))
        except BaseException:
            return failure.error
        jb_forget(frame.api, failure.error)
        return told

    cdef JB_Error* raised(self, JB_CallFrame* frame, jb_failure* failure) noexcept:
        """The error of a Python exception that the loop has left behind; NULL if there is none."""
        try:
            raise_kept(failure)
        except BaseException as exception:
            return self.told(frame, exception)
        return NULL


cdef extern from "Python.h":
    PyObject* PyErr_Occurred() noexcept


cdef int raise_pending() except -1:
    """Raise the exception that is set, if one is."""
    return -1 if PyErr_Occurred() != NULL else 0


cdef int raise_kept(jb_failure* failure) except -1:
    """Raise the exception that a loop has left behind, in this thread or another, if it has."""
    kept = None
    if failure.exception != NULL:
        kept = <object>failure.exception
        Py_DECREF(kept)
        failure.exception = NULL
    raise_pending()
    if kept is not None:
        raise kept
    return 0


cdef JB_Error* report_failure(
    JB_CallFrame* frame, SiteHead* head, jb_failure* failure
) noexcept with gil:
    return (<LoopSite>head.owner).report(frame, failure)


cdef JB_Error* report_refused(
    JB_CallFrame* frame, SiteHead* head, jb_failure* failure
) noexcept with gil:
    return (<LoopSite>head.owner).refused(frame, failure)


cdef JB_Error* report_raised(
    JB_CallFrame* frame, SiteHead* head, jb_failure* failure
) noexcept with gil:
    return (<LoopSite>head.owner).raised(frame, failure)


cdef JB_Error* execute_loops(JB_CallFrame* frame, SiteHead* head) noexcept nogil:
    cdef jb_kernel* kernel = <jb_kernel*>head.body
    cdef jb_failure failure
    if is_watching() and can_be_read(kernel, frame):
        return run_watched(frame, head)
    run(kernel, frame, &failure)
    return outcome(kernel, frame, head, &failure)


cdef bint can_be_counted(jb_kernel* kernel, JB_CallFrame* frame) noexcept nogil:
    return (
        frame.args.size == kernel.operands
        and frame.rets.size == kernel.buffers - kernel.operands
    )


cdef enum:
    MOST_DIMENSIONS = 64  # of a NumPy array


cdef bint can_be_read(jb_kernel* kernel, JB_CallFrame* frame) noexcept nogil:
    """Whether NumPy can show the buffers."""
    cdef JB_Buffer* buffer
    cdef int i
    if not can_be_counted(kernel, frame):
        return False
    for i in range(kernel.buffers):
        buffer = jb_buffer(frame, kernel.operands, i)
        if jb_buffer_flaw(buffer) != NULL or buffer.rank > MOST_DIMENSIONS:
            return False
    return True


cdef JB_Error* run_watched(JB_CallFrame* frame, SiteHead* head) noexcept with gil:
    return (<LoopSite>head.owner).run_watched(frame)


cdef JB_Error* outcome(
    jb_kernel* kernel, JB_CallFrame* frame, SiteHead* head, jb_failure* failure
) noexcept nogil:
    """The error of a call that has ended, or NULL."""
    cdef JB_Error* error = NULL
    if failure.error != NULL:
        return report_refused(frame, head, failure)
    if kernel.may_raise and (
        failure.exception != NULL or PyGILState_GetThisThreadState() != NULL
    ):
        error = report_raised(frame, head, failure)
    if error == NULL and failure.kind != JB_FINE:
        error = report_failure(frame, head, failure)
    return error


cdef void run(jb_kernel* kernel, JB_CallFrame* frame, jb_failure* failure) noexcept nogil:
    """One call: all iterations, on one or several threads."""
    cdef jb_plan* plan = jb_plan_kept(kernel)
    cdef jb_plan* own = NULL
    cdef char* bases[64]
    cdef int i
    jb_start(failure, frame)
    if plan == NULL or not jb_fits(
        plan.known, kernel.operands, kernel.buffers, frame, bases
    ):
        own = jb_plan_of(kernel, frame, failure)
        if own == NULL:
            return
        plan = own
        if jb_plan_keep(kernel, own):
            own = NULL
        jb_fits(plan.known, kernel.operands, kernel.buffers, frame, bases)
    if plan.total > 0:
        if plan.large:
            for i in range(kernel.operands, kernel.buffers):
                JB_ADVISE_HUGE(bases[i], plan.bytes[i])
        if kernel.threads == 1 or plan.total == 1 or frame.ctx == NULL:
            if kernel.may_raise and PyGILState_GetThisThreadState() == NULL:
                run_with_state(kernel, plan, bases, 0, plan.total, failure)
            elif plan.direct:
                jb_run_directly(kernel, plan, bases)
            else:
                jb_run_range(kernel, plan, bases, 0, plan.total, failure)
        else:
            run_on_threads(kernel, plan, bases, frame, failure)
    jb_plan_free(own)


cdef void run_on_threads(
    jb_kernel* kernel, jb_plan* plan, char** bases, JB_CallFrame* frame, jb_failure* failure
) noexcept nogil:
    """The first chunk alone, to see how long it takes; the rest with help if that is worth it."""
    cdef Chunks chunks
    cdef int64_t began, took, count, helpers
    chunks.kernel = kernel
    chunks.plan = plan
    chunks.bases = bases
    chunks.failure = failure
    chunks.first = 0
    chunks.size = jb_chunk_size(kernel, plan)
    count = (plan.total + chunks.size - 1) // chunks.size
    began = jb_now()
    do_chunk(&chunks, 0)
    if count == 1:
        return
    took = jb_now() - began
    chunks.first = chunks.size
    helpers = kernel.threads
    if helpers == 0:
        helpers = jb_runtime_threads(frame.api, frame.ctx)
    if took * (count - 1) < WORTH_A_THREAD:
        helpers = 1
    jb_in_chunks(frame.api, frame.ctx, helpers - 1, count - 1, do_chunk, &chunks)


cdef void do_chunk(void* data, int64_t chunk) noexcept nogil:
    cdef Chunks* chunks = <Chunks*>data
    cdef int64_t begin = chunks.first + chunk * chunks.size
    cdef int64_t end = min(begin + chunks.size, chunks.plan.total)
    cdef jb_fpenv saved = jb_fp_enter()
    if chunks.kernel.may_raise and PyGILState_GetThisThreadState() == NULL:
        run_with_state(chunks.kernel, chunks.plan, chunks.bases, begin, end, chunks.failure)
    else:
        jb_run_range(chunks.kernel, chunks.plan, chunks.bases, begin, end, chunks.failure)
    jb_fp_leave(saved)


cdef void run_with_state(
    const jb_kernel* kernel, const jb_plan* plan, char** bases, int64_t begin, int64_t end,
    jb_failure* failure,
) noexcept nogil:
    """In a thread that is not Python's: keep the exception that a loop leaves behind.

    Loops that raise take the GIL for it; without a state of its own the thread would forget.
    """
    cdef PyGILState_STATE state = PyGILState_Ensure()
    cdef PyThreadState* thread = PyEval_SaveThread()
    jb_run_range(kernel, plan, bases, begin, end, failure)
    PyEval_RestoreThread(thread)
    keep_exception(failure)
    PyGILState_Release(state)


cdef void keep_exception(jb_failure* failure) noexcept with gil:
    try:
        raise_pending()
    except BaseException as exception:
        if failure.exception == NULL:
            Py_INCREF(exception)
            failure.exception = <void*>exception


def ufunc_loop(cnp.ufunc ufunc, int index):
    """Addresses of one of a ufunc's inner loops, and of the data that it takes."""
    if not 0 <= index < ufunc.ntypes:
        raise IndexError(index)
    data = <intptr_t>ufunc.data[index] if ufunc.data != NULL else 0
    return <intptr_t>ufunc.functions[index], data
