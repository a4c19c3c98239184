"""Call sites that call a Python function on NumPy views of XLA's buffers.

What a call needs is kept between calls: `Layout` holds what the buffers look like, `Views` the
NumPy arrays over them, which are re-pointed and not made anew. A concurrent caller makes its
own views.
"""

from cpython.object cimport PyObject, PyObject_Call
from cpython.ref cimport Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libc.string cimport memset

cimport cython
cimport numpy as cnp

import gc
import threading
from functools import partial

import numpy as np

from jaxbind import _dtypes, _errors, _result
from jaxbind._mentions import mentions_jax
from jaxbind._reads import ReadArrays

from jaxbind._frame cimport (
    jb_buffer,
    jb_buffer_flaw,
    jb_fits,
    jb_fp_enter,
    jb_fp_leave,
    jb_fpenv,
)
from jaxbind._huge cimport JB_ADVISE_HUGE
from jaxbind._returns cimport Returns, convert
from jaxbind._sites cimport Frame, Site, SiteHead, is_watching, tell, watch_call
from jaxbind._threads cimport WORTH_A_THREAD, jb_in_chunks, jb_now, jb_runtime_threads
from jaxbind._trees cimport FLAT, NESTED, SINGLE, Tree
from jaxbind._views cimport (
    JB_CHANGED,
    JB_SET_DATA,
    Layout,
    Views,
    is_shared,
    new_view,
    whole_buffer,
)
from jaxbind._abi cimport JB_Buffer, JB_CallFrame, JB_Error

cnp.import_array()

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject*) noexcept
    void Py_DECREF(PyObject*) noexcept
    void Py_XDECREF(PyObject*) noexcept
    object PyObject_Vectorcall(PyObject*, PyObject* const*, size_t, PyObject*)
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET

cdef extern from *:
    """
    /* Views that wait for the next call. With the GIL no two threads are here at once. */
    static inline PyObject *jb_take(PyObject **spare) {
    #ifdef Py_GIL_DISABLED
        return __atomic_exchange_n(spare, NULL, __ATOMIC_ACQ_REL);
    #else
        PyObject *views = *spare;
        *spare = NULL;
        return views;
    #endif
    }
    static inline void jb_put_back(PyObject **spare, PyObject *views) {
    #ifdef Py_GIL_DISABLED
        views = __atomic_exchange_n(spare, views, __ATOMIC_ACQ_REL);
    #else
        PyObject *other = *spare;
        *spare = views;
        views = other;
    #endif
        Py_XDECREF(views);
    }
    """
    PyObject* jb_take(PyObject** spare) noexcept
    void jb_put_back(PyObject** spare, PyObject* views) noexcept


# The byte with which results are filled before each call, negative for none.
cdef int poison = -1


def set_poison(int byte):
    """Fill results with this byte before each call (of any binding), a negative one ends it.

    Returns what was set before.
    """
    global poison
    before, poison = poison, byte
    return before


# Iterations on several threads. ``error`` is the first exception, owned.
cdef struct Chunks:
    PyObject* site
    PyObject* views
    PyObject* error
    cnp.npy_intp iteration, size


# A call that is quicker than this, in nanoseconds, has not called JAX.
cdef int64_t QUICK = 5000

# And after as many calls it is looked at again.
cdef enum:
    OFTEN = 1024

# Locks of a process that was forked may be held by threads that are not in its child.
cdef long process = 0


def enter_child():
    """Forget, in a child of fork, which locks were held."""
    global process
    process += 1


cdef class CallSite(Site):
    """One call site of a compiled program: a function, and how it is called."""

    cdef object function
    cdef str label
    cdef list names, seen, declared
    cdef tuple keyword_names
    cdef dict keywords
    cdef bint wants_out, vectorized, fortran
    cdef int loop
    cdef int64_t threads
    cdef object guard, make_plan, planning
    cdef bint guarded, once
    cdef object naming  # whether the function's code names JAX, None before anybody has asked
    cdef object arrays  # `ReadArrays`, None before the first call
    cdef unsigned int calls
    cdef long process
    cdef Tree arguments
    cdef Returns returns
    cdef Layout layout  # of the latest kind of buffers; `planning` guards it
    cdef PyObject* spare  # `Views`, owned

    def __cinit__(self, *args, **kwargs):
        self.spare = NULL

    def __dealloc__(self):
        Py_XDECREF(self.spare)

    def __init__(
        self, *, function, str label, list names, dict keywords, bint wants_out, int loop,
        bint vectorized, bint fortran, tree, result, bint unwrap, bint rule, tuple kept, list seen,
        list declared, int threads=1, tuple guard=(), make_plan=None, bint once=False,
        bint cotangents=False,
    ):
        self.head.execute = execute_python
        if make_plan is not None:
            keywords = {**keywords, "plan": None}  # made at the first call
        self.function = function
        self.label = label
        self.names = names
        self.keywords = keywords
        self.keyword_names = tuple(keywords) + (("out",) if wants_out else ())
        self.wants_out = wants_out
        self.loop = loop
        self.threads = threads
        self.guard = guard
        self.guarded = bool(guard)
        self.make_plan = make_plan
        self.once = once
        self.planning, self.process = threading.RLock(), process
        self.vectorized = vectorized
        self.fortran = fortran
        self.seen = seen
        self.declared = declared
        self.arguments = Tree(tree)
        self.returns = Returns(
            Tree(result), kept, unwrap=unwrap, rule=rule, cotangents=cotangents,
            vectorized=vectorized, loop=loop)

    cdef JB_Error* run(self, JB_CallFrame* frame) noexcept:
        """Execute one call; every exception becomes an XLA error here, and only here."""
        cdef JB_Error* error = NULL
        cdef cnp.npy_intp iteration = 0
        cdef PyObject* views = jb_take(&self.spare)  # a concurrent caller makes its own
        if execute_site(self, frame, &views, &iteration) < 0:
            error = self.failed(frame, views, iteration)
            Py_XDECREF(views)  # they may have memory of their own now
        else:
            jb_put_back(&self.spare, views)
        return error

    cdef int execute(
        self, JB_CallFrame* frame, PyObject** views, cnp.npy_intp* iteration
    ) except -1:
        if views[0] == NULL or not fits(views[0], frame):
            Py_XDECREF(views[0])
            views[0] = NULL
            views[0] = self.views_of(frame)
        self.calls += 1
        if self.guarded or is_watching() or self.calls % OFTEN == 0:
            self.loop_over_carefully(frame, <Views>views[0], iteration)
        else:
            self.loop_over(frame, <Views>views[0], iteration)
        return 0

    # The views that are kept between calls are handed on as pointers, and what every call asks of
    # them is in their C fields: a reference counter that goes up and down within a few
    # instructions stalls the processor.

    cdef PyObject* views_of(self, JB_CallFrame* frame) except NULL:
        """New views, pointed to the buffers of a frame, whose layout is learnt if it is new."""
        cdef Layout layout
        if self.process != process:
            self.planning, self.process = threading.RLock(), process
        with self.planning:  # several devices come at once, and there is one plan
            layout = self.layout
            if layout is None or not layout.describes(frame):
                layout = self.layout = self.layout_of(frame)
        views = Views(layout, self.keyword_names, self.wants_out)
        fits(<PyObject*>views, frame)
        Py_INCREF(views)
        return <PyObject*>views

    cdef int loop_over(
        self, JB_CallFrame* frame, Views views, cnp.npy_intp* iteration
    ) except -1:
        cdef list copies = self.prepare(views)
        self.iterate_all(frame, views, iteration)
        if copies is not None:
            finish(views.layout, copies)
        return 0

    cdef int loop_over_carefully(
        self, JB_CallFrame* frame, Views views, cnp.npy_intp* iteration
    ) except -1:
        """As `loop_over`, refusing calls of JAX in between, and watched under `jaxbind.debug`.

        A function that is quick enough not to have called JAX, and whose code does not name it
        either, is guarded now and then only: setting a guard costs as much as a call.
        """
        cdef int64_t began
        cdef list copies = self.prepare(views)
        watch = self.watched(frame, views, copies) if is_watching() else None
        if self.guard and self.names_jax():
            if self.arrays is None:
                self.arrays = ReadArrays(self.function)
            self.arrays.wait()
        enter, leave = self.guard or (None, None)
        before = enter() if enter is not None else None
        try:
            began = jb_now()
            self.iterate_all(frame, views, iteration)
            if self.guard:
                self.guarded = jb_now() - began >= QUICK or self.names_jax()
            if watch is not None:
                again = None if self.once else partial(self.once_more, Frame.of(frame), views)
                watch.check(again)
        finally:
            if leave is not None:
                leave(before)
        if copies is not None:
            finish(views.layout, copies)
        return 0

    cdef bint names_jax(self) except -1:
        if self.naming is None:
            self.naming = mentions_jax(self.function)
        return self.naming

    def once_more(self, Frame given, Views views):
        cdef cnp.npy_intp iteration = 0
        self.iterate_all(given.frame, views, &iteration)

    cdef object watched(self, JB_CallFrame* frame, Views views, list copies):
        """A watch over the memory that the function gets, whole."""
        cdef Layout layout = views.layout
        cdef int i
        whole = []
        for i in range(layout.count):
            if copies is not None and copies[i] is not None:
                whole.append(copies[i][1])
            else:
                whole.append(whole_buffer(jb_buffer(frame, layout.operands, i), layout.raw[i]))
        shared = any([is_shared(views, i) for i in range(layout.operands, layout.count)])
        return watch_call(
            self.names, whole[:layout.operands], whole[layout.operands:], shared)

    cdef JB_Error* failed(
        self, JB_CallFrame* frame, PyObject* views, cnp.npy_intp iteration
    ) noexcept:
        """Describe the exception that is set."""
        try:
            propagate()
        except BaseException as exception:
            return self.report(frame, views, iteration, exception)
        return NULL

    cdef Layout layout_of(self, JB_CallFrame* frame):
        cdef JB_Buffer* buffer
        cdef const char* flaw
        cdef int64_t i, a
        specs = []
        for i in range(frame.args.size + frame.rets.size):
            buffer = jb_buffer(frame, <int>frame.args.size, <int>i)
            flaw = jb_buffer_flaw(buffer)
            if flaw != NULL:
                raise _errors.ContractError(f"got {flaw.decode()} from XLA")
            specs.append((<int>buffer.dtype, tuple([buffer.dims[a] for a in range(buffer.rank)])))
        if frame.args.size != len(self.seen) or frame.rets.size != len(self.declared):
            raise _errors.ContractError(
                f"got {frame.args.size} operands and {frame.rets.size} results; it was compiled"
                f" for {len(self.seen)} and {len(self.declared)}"
            )
        layout = Layout(
            specs, <int>frame.args.size, loop=self.loop, vectorized=self.vectorized,
            fortran=self.fortran, seen=self.seen, declared=self.declared, keywords=self.keywords)
        if self.make_plan is not None:
            layout.keywords = {**self.keywords, "plan": self.plan_for(layout)}
        return layout

    cdef object plan_for(self, Layout layout):
        core = [
            (tuple(shape[self.loop:]), layout.seen[i])
            for i, (_, shape) in enumerate(layout.specs[:layout.operands])
        ]
        enter, leave = self.guard or (None, None)
        before = enter() if enter is not None else None
        try:
            return self.make_plan(core)
        except BaseException as error:
            error.add_note(f"raised in the function given to {self.label}.def_plan")
            raise
        finally:
            if leave is not None:
                leave(before)

    cdef list prepare(self, Views views):
        """Make results ready, and copies of what the function sees in another dtype."""
        cdef int i
        for i in range(views.operands, views.count):
            JB_ADVISE_HUGE(views.starts[i], views.sizes_in_bytes[i])
        copies = None
        if views.converts:
            copies = [
                None if views.layout.whole[i] is None else self.converted(views.layout, views, i)
                for i in range(views.count)
            ]
        if poison >= 0:
            for i in range(views.operands, views.count):
                size = views.sizes_in_bytes[i]
                if copies is not None and copies[i] is not None:
                    size = copies[i][1].nbytes
                if size > 0 and not is_shared(views, i):
                    memset(views.starts[i], poison, size)
        return copies

    cdef int iterate_all(
        self, JB_CallFrame* frame, Views views, cnp.npy_intp* iteration
    ) except -1:
        if self.threads == 1 or views.iterations < 2:
            return self.iterate(views, 0, views.iterations, iteration)
        return self.iterate_on_threads(frame, views.layout, views, iteration)

    cdef int iterate(
        self, Views views, cnp.npy_intp begin, cnp.npy_intp end, cnp.npy_intp* iteration
    ) except -1:
        """Call the function for iterations ``begin`` to ``end - 1`` over its loop dimensions."""
        cdef int i, axis
        cdef cnp.npy_intp done, rest = begin
        cdef char** bases = views.bases
        cdef cnp.npy_intp* stride
        for i in range(views.count):
            bases[i] = views.starts[i]
        for axis in range(views.loop - 1, -1, -1):
            views.index[axis] = rest % views.sizes[axis] if rest else 0
            rest = rest // views.sizes[axis] if rest else 0
            if views.index[axis]:
                for i in range(views.count):
                    bases[i] += views.strides[i * views.loop + axis] * views.index[axis]
        for done in range(begin, end):
            iteration[0] = done
            for i in range(views.count):
                JB_SET_DATA(views.items[i], bases[i])
            self.call(views)
            for i in range(views.count):
                if Py_REFCNT(views.items[i]) != 1:
                    self.check_released(views)
                if JB_CHANGED(views.items[i], &views.marks[i]):
                    views.renew(i)
            for axis in range(views.loop - 1, -1, -1):
                views.index[axis] += 1
                stride = views.strides + axis
                if views.index[axis] < views.sizes[axis]:
                    for i in range(views.count):
                        bases[i] += stride[i * views.loop]
                    break
                views.index[axis] = 0
                for i in range(views.count):
                    bases[i] -= stride[i * views.loop] * (views.sizes[axis] - 1)
        return 0

    cdef int iterate_on_threads(
        self, JB_CallFrame* frame, Layout layout, Views views, cnp.npy_intp* iteration
    ) except -1:
        """The first iteration alone, to see how long it takes; the rest with help if that pays."""
        cdef Chunks job
        cdef int64_t helpers, count, began = jb_now()
        self.iterate(views, 0, 1, iteration)
        if (jb_now() - began) * (layout.iterations - 1) < WORTH_A_THREAD:
            return self.iterate(views, 1, layout.iterations, iteration)
        helpers = self.threads or jb_runtime_threads(frame.api, frame.ctx)
        job.size = max(1, (layout.iterations - 1) // (4 * helpers))
        count = (layout.iterations - 2) // job.size + 1
        job.site, job.views = <PyObject*>self, <PyObject*>views
        job.error = NULL
        with nogil:
            jb_in_chunks(frame.api, frame.ctx, helpers - 1, count, do_chunk, &job)
        if job.error != NULL:
            iteration[0] = job.iteration
            error = <object>job.error
            Py_DECREF(job.error)
            raise error
        return 0

    cdef int iterate_chunk(self, Chunks* job, int64_t chunk) noexcept:
        """Some iterations, over views of this thread's own."""
        cdef Views given = <Views>job.views
        cdef Layout layout = given.layout
        cdef cnp.npy_intp iteration = 0, begin = 1 + chunk * job.size
        cdef int i
        if job.error != NULL:
            return 0
        enter, leave = self.guard if self.guarded else (None, None)
        before = enter() if enter is not None else None
        try:
            views = Views(layout, self.keyword_names, self.wants_out)
            for i in range(layout.count):
                views.starts[i] = given.starts[i]
            self.iterate(
                views, begin, min(begin + job.size, layout.iterations), &iteration)
        except BaseException as exception:
            with cython.critical_section(self):
                if job.error == NULL:
                    Py_INCREF(exception)
                    job.error = <PyObject*>exception
                    job.iteration = iteration
        finally:
            if leave is not None:
                leave(before)
        return 0

    cdef tuple converted(self, Layout layout, Views views, int i):
        """A copy of buffer i in the dtype that the function knows, of the same memory order."""
        shape, seen_strides, raw_strides = layout.whole[i]
        raw = new_view(layout.raw[i], shape, tuple(raw_strides), i >= layout.operands)
        JB_SET_DATA(<PyObject*>raw, views.starts[i])
        memory = np.empty(raw.size, layout.seen[i])
        seen = np.ndarray(shape, layout.seen[i], memory, 0, seen_strides)
        if i < layout.operands:
            convert(seen, raw)
        views.starts[i] = cnp.PyArray_BYTES(memory)
        return raw, seen

    cdef int call(self, Views views) except -1:
        """Call the function once, on the views as they point now, and store what it returns."""
        cdef int n = views.operands
        cdef object value
        if self.arguments.shape == FLAT and (
            self.returns.tree.shape == SINGLE or not self.wants_out
        ):
            value = PyObject_Vectorcall(
                <PyObject*>self.function,
                views.argv + 1,
                n | PY_VECTORCALL_ARGUMENTS_OFFSET,
                views.keyword_names,
            )
        else:
            value = self.call_nested(views)
        if not self.wants_out:
            self.returns.store(views, value)
        elif value is not None and not (
            self.returns.tree.shape == SINGLE and (
                <PyObject*>value == views.items[n]
                # NumPy's functions make a scalar of an `out` without dimensions
                or (isinstance(value, np.generic) and not views.layout.shapes[n])
            )
        ):
            raise _errors.returned_with_out(_result.describe(value))
        return 0

    cdef object call_nested(self, Views views):
        cdef int n = views.operands
        cdef list operands = views.arrays[:n]
        cdef Tree results = self.returns.tree
        keywords = views.layout.keywords
        if self.wants_out and results.shape == SINGLE:
            keywords = {**keywords, "out": views.arrays[n]}
        elif self.wants_out:
            outs = iter(views.arrays[n:])
            keywords = {**keywords, "out": results.build(
                [next(outs) if k else None for k in self.returns.kept])}
            del outs
        arguments = tuple(operands) if self.arguments.shape == FLAT else self.arguments.build(
            operands)
        del operands
        value = PyObject_Call(self.function, arguments, keywords)
        if self.wants_out and results.shape == NESTED:
            replaced = _result.replaced(results.treedef, views.arrays[n:], keywords["out"])
            if replaced is not None:
                raise _errors.replaced_in_out(replaced)
        return value

    cdef str shown_in(self, JB_CallFrame* frame, int i):
        """An operand whose layout is not known yet."""
        cdef JB_Buffer* buffer
        if i >= frame.args.size:
            return "?"
        buffer = jb_buffer(frame, <int>frame.args.size, i)
        if jb_buffer_flaw(buffer) != NULL:
            return "?"
        shape = [buffer.dims[a] for a in range(self.loop, buffer.rank)]
        return f"{_dtypes.CODES.get(<int>buffer.dtype, '?')}[{','.join(map(str, shape))}]"

    cdef int check_released(self, Views views) except -1:
        """Raise if the function still holds a view: its memory will soon be something else."""
        # a reference cycle holds nothing that anybody can reach; most are young
        for generation in (0, 2):
            gc.collect(generation)
            kept = self.names_of_kept(views)
            if not kept:
                return 0
        raise _errors.kept_view(kept[0])

    cdef list names_of_kept(self, Views views):
        cdef int i, n = views.operands
        return [
            self.names[i] if i < n else f"its result {i - n}"
            for i in range(views.count) if Py_REFCNT(views.items[i]) != 1
        ]

    cdef JB_Error* report(
        self, JB_CallFrame* frame, PyObject* views, cnp.npy_intp iteration, exception
    ) noexcept:
        cdef Layout layout
        operands = ["?"] * len(self.names)
        kept = []
        iterations = 1
        try:
            if views == NULL:
                operands = [self.shown_in(frame, i) for i in range(len(self.names))]
            else:
                layout = (<Views>views).layout
                iterations = layout.iterations
                operands = [layout.shown(i) for i in range(layout.operands)]
                _errors.let_go(exception)
                kept = self.names_of_kept(<Views>views)
                if kept:  # perhaps by a cycle, which is nobody's fault
                    gc.collect()
                    kept = self.names_of_kept(<Views>views)
                (<Views>views).let_go()
        except BaseException:
            pass  # the exception is worth more than what surrounds it
        return tell(
            frame, self.label, self.names, operands, iteration, iterations, exception, kept)


cdef inline bint fits(PyObject* views, JB_CallFrame* frame) noexcept:
    """Point views to the buffers of a frame, if these are as they were made for."""
    return jb_fits(
        (<Views>views).known, (<Views>views).operands, (<Views>views).count, frame,
        (<Views>views).starts)


cdef int finish(Layout layout, list copies) except -1:
    """Convert results back."""
    cdef int i
    for i in range(layout.operands, layout.count):
        if copies[i] is not None:
            raw, seen = copies[i]
            convert(raw, seen)
    return 0


cdef int execute_or_raise(
    CallSite site, JB_CallFrame* frame, PyObject** views, cnp.npy_intp* iteration
) except -1:
    return site.execute(frame, views, iteration)


cdef int propagate() except -1:
    """Raise the exception that is set."""
    return -1


# Called through a pointer without exceptions, so that `run` needs no `try`: saving the thread's
# exception state would cost a tenth of a call. -1 says that one is set.
ctypedef int (*execute_function)(CallSite, JB_CallFrame*, PyObject**, cnp.npy_intp*) noexcept
cdef execute_function execute_site = <execute_function>execute_or_raise


cdef JB_Error* execute_python(JB_CallFrame* frame, SiteHead* head) noexcept with gil:
    return (<CallSite>head.owner).run(frame)


cdef void do_chunk(void* data, int64_t chunk) noexcept nogil:
    cdef jb_fpenv saved = jb_fp_enter()
    take_chunk(<Chunks*>data, chunk)
    jb_fp_leave(saved)


cdef void take_chunk(Chunks* job, int64_t chunk) noexcept with gil:
    (<CallSite>job.site).iterate_chunk(job, chunk)
