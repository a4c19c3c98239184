"""Call sites that call a Python function on NumPy views of XLA's buffers.

What a call needs is kept between calls: `Layout` holds what the buffers look like, `Views` the
NumPy arrays over them, which are re-pointed and not made anew. A concurrent caller makes its
own views.
"""

from cpython.object cimport PyObject, PyObject_Call
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memset

cimport cython
cimport numpy as cnp

import gc
import threading
from functools import partial

import numpy as np

from jaxbind import _dtypes, _errors, _result
from jaxbind._mentions import mentions_jax

from jaxbind._frame cimport (
    jb_buffer_flaw,
    jb_fp_enter,
    jb_fp_leave,
    jb_fpenv,
    make_error,
    operand,
    result as result_buffer,
)
from jaxbind._huge cimport JB_ADVISE_HUGE
from jaxbind._sites cimport Site, SiteHead, is_watching, watch_call
from jaxbind._views cimport (
    JB_CHANGED,
    JB_SET_DATA,
    Layout,
    Views,
    buffer_strides,
    new_view,
)
from jaxbind._abi cimport JB_Api, JB_Buffer, JB_CallFrame, JB_Error, JB_ExecutionContext

cnp.import_array()

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject*) noexcept
    object PyObject_Vectorcall(PyObject*, PyObject* const*, size_t, PyObject*)
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    bint PyFloat_CheckExact(object)
    double PyFloat_AS_DOUBLE(object)

cdef extern from "numpy/arrayobject.h":
    int PyArray_CopyInto(cnp.ndarray destination, cnp.ndarray source) except -1

# The byte with which results are filled before each call, negative for none.
cdef int poison = -1


def set_poison(int byte):
    """Fill results with this byte before each call (of any binding); a negative one ends it.

    Returns what was set before.
    """
    global poison
    before = poison
    poison = byte
    return before


cdef extern from "_threads.h" nogil:
    int64_t jb_now()
    int64_t jb_runtime_threads(const JB_Api*, JB_ExecutionContext*)
    void jb_in_chunks(
        const JB_Api*, JB_ExecutionContext*, int64_t, int64_t, void (*)(void*, int64_t) noexcept,
        void*)
    int64_t WORTH_A_THREAD "JB_WORTH_A_THREAD"


# Iterations on several threads. ``error`` is the first exception, owned.
cdef struct Chunks:
    PyObject* site
    PyObject* views
    PyObject* error
    cnp.npy_intp iteration, size


# How a pytree of operands or results is taken apart and put together.
cdef enum Shape:
    SINGLE  # one leaf
    FLAT    # a tuple of leaves
    NESTED  # anything else

cdef object template_of(tree):
    """The structure as nested tuples, lists and dicts of leaf numbers; None if there are others."""
    skeleton = tree.unflatten(range(tree.num_leaves))
    return skeleton if is_plain(skeleton) else None


cdef bint is_plain(node):
    if node is None or type(node) is int:
        return True
    if type(node) is dict:
        return all([is_plain(item) for item in node.values()])
    return type(node) in (tuple, list) and all([is_plain(item) for item in node])


cdef object build(template, list leaves):
    """Fill a template of `template_of`."""
    if type(template) is int:
        return leaves[<Py_ssize_t>template]
    if type(template) is tuple:
        return tuple([build(item, leaves) for item in <tuple>template])
    if type(template) is list:
        return [build(item, leaves) for item in <list>template]
    if type(template) is dict:
        return {name: build(item, leaves) for name, item in (<dict>template).items()}
    return None


# A call that is quicker than this, in nanoseconds, has not called JAX.
cdef int64_t QUICK = 5000


cdef class Frame:
    """A pointer to a frame, for a call back."""

    cdef JB_CallFrame* frame

    @staticmethod
    cdef Frame of(JB_CallFrame* frame):
        cdef Frame made = Frame()
        made.frame = frame
        return made


cdef class CallSite(Site):
    """One call site of a compiled program: a function, and how it is called."""

    cdef object function, tree, result_tree, tree_template, result_template
    cdef str label
    cdef list names, seen, declared, keyword_values
    cdef tuple kept, keyword_names
    cdef dict keywords
    cdef bint wants_out, vectorized, fortran, all_kept, unwrap, rule
    cdef int loop
    cdef int64_t threads
    cdef object guard, make_plan, planning
    cdef bint guarded
    cdef Shape arguments, results
    cdef Layout layout
    cdef Views spare

    def __init__(
        self, *, function, str label, list names, dict keywords, bint wants_out, int loop,
        bint vectorized, bint fortran, tree, result, bint unwrap, bint rule, tuple kept, list seen,
        list declared, int threads=1, tuple guard=(), make_plan=None,
    ):
        self.head.execute = execute_python
        if make_plan is not None:
            keywords = {**keywords, "plan": None}  # made at the first call
        self.function = function
        self.label = label
        self.names = names
        self.keywords = keywords
        self.keyword_names = tuple(keywords) + (("out",) if wants_out else ())
        self.keyword_values = list(keywords.values())
        self.wants_out = wants_out
        self.loop = loop
        self.threads = threads
        self.guard = guard
        self.guarded = bool(guard)
        self.make_plan = make_plan
        self.planning = threading.RLock()
        self.vectorized = vectorized
        self.fortran = fortran
        self.tree = tree
        self.result_tree = result
        self.kept = kept
        self.all_kept = all(kept)
        self.seen = seen
        self.declared = declared
        self.tree_template = template_of(tree)
        self.result_template = template_of(result)
        flat = tuple(range(tree.num_leaves))
        self.arguments = FLAT if self.tree_template == flat else NESTED
        leaves = result.num_leaves
        if type(self.result_template) is int:
            self.results = SINGLE
        elif self.result_template == tuple(range(leaves)):
            self.results = FLAT
        else:
            self.results = NESTED
        self.rule = rule
        self.unwrap = unwrap and self.results == SINGLE

    cdef JB_Error* run(self, JB_CallFrame* frame) noexcept:
        """Execute one call; every exception becomes an XLA error here, and only here."""
        cdef jb_fpenv saved = jb_fp_enter()
        cdef JB_Error* error = NULL
        cdef cnp.npy_intp iteration = 0
        if execute_site(self, frame, &iteration) < 0:
            error = self.failed(frame, iteration)
        jb_fp_leave(saved)
        return error

    cdef int execute(self, JB_CallFrame* frame, cnp.npy_intp* iteration) except -1:
        cdef Layout layout
        cdef Views views
        with cython.critical_section(self):  # of free-threaded Python
            layout, views = self.layout, self.spare
            self.spare = None  # a concurrent caller makes its own
        if layout is None or not layout.matches(frame):
            layout = self.learn(frame)
        if views is None or views.layout is not layout:
            views = Views(layout, self.keyword_values, self.keyword_names, self.wants_out)
        if self.guarded or is_watching():
            self.loop_over_carefully(frame, layout, views, iteration)
        else:
            self.loop_over(frame, layout, views, iteration)
        self.spare = views
        return 0

    cdef int loop_over_carefully(
        self, JB_CallFrame* frame, Layout layout, Views views, cnp.npy_intp* iteration
    ) except -1:
        """As `loop_over`, refusing calls of JAX in between, and watched under `jaxbind.debug`.

        A function that is quick enough not to have called JAX, and whose code does not name it
        either, is guarded no more: setting a guard costs as much as a call.
        """
        cdef int64_t began
        watch = None
        if is_watching():
            whole = [self.whole_buffer(frame, layout, i) for i in range(layout.count)]
            n = layout.operands
            watch = watch_call(self.names, whole[:n], whole[n:], False)
        enter, leave = self.guard or (None, None)
        before = enter() if enter is not None else None
        try:
            began = jb_now()
            self.loop_over(frame, layout, views, iteration)
            if jb_now() - began < QUICK:
                self.guarded = mentions_jax(self.function)
            if watch is not None:
                watch.check(partial(self.once_more, Frame.of(frame), layout, views))
        finally:
            if leave is not None:
                leave(before)
        return 0

    def once_more(self, Frame given, Layout layout, Views views):
        cdef cnp.npy_intp iteration = 0
        self.loop_over(given.frame, layout, views, &iteration)

    cdef object whole_buffer(self, JB_CallFrame* frame, Layout layout, int i):
        """A buffer as one array, its memory's order aside."""
        cdef JB_Buffer* buffer
        if i < layout.operands:
            buffer = operand(frame, i)
        else:
            buffer = result_buffer(frame, i - layout.operands)
        shape = tuple([buffer.dims[a] for a in range(buffer.rank)])
        strides = buffer_strides(shape, self.loop, layout.raw[i].itemsize, False)
        array = new_view(layout.raw[i], shape, tuple(strides), True)
        JB_SET_DATA(<PyObject*>array, <char*>buffer.data)
        return array

    cdef JB_Error* failed(self, JB_CallFrame* frame, cnp.npy_intp iteration) noexcept:
        """Describe the exception that is set."""
        try:
            propagate()
        except BaseException as exception:
            return self.report(frame, self.layout, iteration, exception)
        return NULL

    cdef Layout learn(self, JB_CallFrame* frame):
        with self.planning:  # several devices come at once, and there is one plan
            if self.layout is None or not self.layout.matches(frame):
                self.layout = self.layout_of(frame)
            return self.layout

    cdef Layout layout_of(self, JB_CallFrame* frame):
        cdef JB_Buffer* buffer
        cdef const char* flaw
        cdef int64_t i, a
        specs = []
        for i in range(frame.args.size + frame.rets.size):
            if i < frame.args.size:
                buffer = operand(frame, i)
            else:
                buffer = result_buffer(frame, i - frame.args.size)
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
            fortran=self.fortran, seen=self.seen, declared=self.declared)
        if self.make_plan is not None:
            n = layout.operands
            core = [
                (tuple(shape[self.loop:]), layout.seen[i])
                for i, (_, shape) in enumerate(layout.specs[:n])
            ]
            enter, leave = self.guard or (None, None)
            before = enter() if enter is not None else None
            try:
                plan = self.make_plan(core)
            finally:
                if leave is not None:
                    leave(before)
            self.keywords = {**self.keywords, "plan": plan}
            self.keyword_values = list(self.keywords.values())
        return layout

    cdef int loop_over(
        self, JB_CallFrame* frame, Layout layout, Views views, cnp.npy_intp* iteration
    ) except -1:
        cdef int i
        cdef list copies = None
        for i in range(layout.operands):
            views.starts[i] = <char*>operand(frame, i).data
        for i in range(layout.operands, layout.count):
            views.starts[i] = <char*>result_buffer(frame, i - layout.operands).data
            JB_ADVISE_HUGE(views.starts[i], layout.sizes_in_bytes[i])
            if (poison >= 0 and layout.sizes_in_bytes[i] > 0
                    and not self.is_aliased(layout, views, i)):
                memset(views.starts[i], poison, layout.sizes_in_bytes[i])
        if layout.converts:
            copies = [
                None if layout.whole[i] is None else self.converted(layout, views, i)
                for i in range(layout.count)
            ]
        if self.threads == 1 or layout.iterations < 2:
            self.iterate(layout, views, 0, layout.iterations, iteration)
        else:
            self.iterate_on_threads(frame, layout, views, iteration)
        if copies is not None:
            for i in range(layout.operands, layout.count):
                if copies[i] is not None:
                    raw, seen = copies[i]
                    convert(raw, seen)
        return 0

    cdef bint is_aliased(self, Layout layout, Views views, int result) noexcept:
        """Whether a result lies in an operand's memory (``aliases=``), which is not ours to fill."""
        cdef int i
        for i in range(layout.operands):
            if views.starts[i] == views.starts[result]:
                return True
        return False

    cdef int iterate(
        self, Layout layout, Views views, cnp.npy_intp begin, cnp.npy_intp end,
        cnp.npy_intp* iteration
    ) except -1:
        """Call the function for iterations ``begin`` to ``end - 1`` over its loop dimensions."""
        cdef int i, axis
        cdef cnp.npy_intp done, rest = begin
        cdef char** bases = views.bases
        cdef cnp.npy_intp* stride
        for i in range(layout.count):
            bases[i] = views.starts[i]
        for axis in range(layout.loop - 1, -1, -1):
            views.index[axis] = rest % layout.sizes[axis] if rest else 0
            rest = rest // layout.sizes[axis] if rest else 0
            if views.index[axis]:
                for i in range(layout.count):
                    bases[i] += layout.strides[i * layout.loop + axis] * views.index[axis]
        for done in range(begin, end):
            iteration[0] = done
            for i in range(layout.count):
                JB_SET_DATA(views.items[i], bases[i])
            self.call(layout, views)
            for i in range(layout.count):
                if Py_REFCNT(views.items[i]) != 1:
                    self.check_released(views)
                    break
            for i in range(layout.count):
                if JB_CHANGED(views.items[i], &views.marks[i]):
                    views.renew(i)
            for axis in range(layout.loop - 1, -1, -1):
                views.index[axis] += 1
                stride = layout.strides + axis
                if views.index[axis] < layout.sizes[axis]:
                    for i in range(layout.count):
                        bases[i] += stride[i * layout.loop]
                    break
                views.index[axis] = 0
                for i in range(layout.count):
                    bases[i] -= stride[i * layout.loop] * (layout.sizes[axis] - 1)
        return 0

    cdef int iterate_on_threads(
        self, JB_CallFrame* frame, Layout layout, Views views, cnp.npy_intp* iteration
    ) except -1:
        """The first iteration alone, to see how long it takes; the rest with help if that pays."""
        cdef Chunks job
        cdef int64_t helpers, count, began = jb_now()
        self.iterate(layout, views, 0, 1, iteration)
        if (jb_now() - began) * (layout.iterations - 1) < WORTH_A_THREAD:
            return self.iterate(layout, views, 1, layout.iterations, iteration)
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
            Py_DECREF(error)
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
            views = Views(layout, self.keyword_values, self.keyword_names, self.wants_out)
            for i in range(layout.count):
                views.starts[i] = given.starts[i]
            self.iterate(
                layout, views, begin, min(begin + job.size, layout.iterations), &iteration)
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

    cdef int call(self, Layout layout, Views views) except -1:
        """Call the function once, on the views as they point now, and store what it returns."""
        cdef int n = layout.operands
        cdef object value
        if self.arguments == FLAT and (self.results == SINGLE or not self.wants_out):
            value = PyObject_Vectorcall(
                <PyObject*>self.function,
                views.argv + 1,
                n | PY_VECTORCALL_ARGUMENTS_OFFSET,
                views.keyword_names,
            )
        else:
            value = self.call_nested(views)
        if not self.wants_out:
            self.store(layout, views, value)
        elif value is not None and not (
            self.results == SINGLE and (
                <PyObject*>value == views.items[n]
                # NumPy's functions make a scalar of an `out` without dimensions
                or (isinstance(value, np.generic) and not layout.shapes[n])
            )
        ):
            raise _errors.returned_with_out(_result.describe(value))
        return 0

    cdef object call_nested(self, Views views):
        cdef int n = views.layout.operands
        cdef list operands = views.arrays[:n]
        keywords = self.keywords
        if self.wants_out and self.results == SINGLE:
            keywords = {**keywords, "out": views.arrays[n]}
        elif self.wants_out:
            outs = iter(views.arrays[n:])
            leaves = [next(outs) if k else None for k in self.kept]
            if self.result_template is None:
                out = self.result_tree.unflatten(leaves)
            else:
                out = build(self.result_template, leaves)
            keywords = {**keywords, "out": out}
            del outs, leaves, out
        if self.arguments == FLAT:
            arguments = tuple(operands)
        elif self.tree_template is None:
            arguments = self.tree.unflatten(operands)
        else:
            arguments = build(self.tree_template, operands)
        del operands
        return PyObject_Call(self.function, arguments, keywords)

    cdef int store(self, Layout layout, Views views, value) except -1:
        cdef int i, count = layout.count - layout.operands
        if self.results == SINGLE and self.all_kept:
            if self.unwrap and type(value) in (tuple, list) and len(value) == 1:
                value = value[0]
            self.store_one(layout, views, 0, value)
            return 0
        if (
            self.results == FLAT and self.all_kept and type(value) is tuple
            and len(value) == count and not has_none(value)
        ):
            leaves = value
        else:
            try:
                leaves = _result.flatten(self.result_tree, self.kept, value)
            except TypeError as error:
                raise _errors.ContractError(str(error)) from None
        for i in range(count):
            self.store_one(layout, views, i, leaves[i])
        return 0

    cdef int store_one(self, Layout layout, Views views, int index, value) except -1:
        """Check one returned value against what was declared, and copy it into its result."""
        cdef int i = layout.operands + index
        cdef object view = <object>views.items[i]
        cdef object array = value
        if not cnp.PyArray_Check(value):
            array = self.as_array(layout, views, index, value, view)
        if cnp.PyArray_DESCR(array) is not cnp.PyArray_DESCR(view):
            if array.dtype != view.dtype:
                if self.rule and _dtypes.is_inexact(array.dtype) and _dtypes.is_inexact(view.dtype):
                    # a rule may compute in another precision, and JAX's cotangent of a real
                    # operand is the real part
                    part = array if _dtypes.is_complex(view.dtype) else array.real
                    array = np.empty(part.shape, view.dtype)
                    convert(array, part)
                elif array.dtype != layout.raw[i]:
                    raise _errors.wrong_dtype(
                        index, layout.count - layout.operands,
                        _result.describe(value), self.wanted(layout, i))
        if not same_shape(array, view):
            if not (self.vectorized and broadcasts(array.shape, view.shape, self.loop)):
                raise _errors.wrong_shape(
                    index, layout.count - layout.operands,
                    _result.describe(value), self.wanted(layout, i))
        PyArray_CopyInto(<cnp.ndarray>view, <cnp.ndarray>array)
        return 0

    cdef object as_array(self, Layout layout, Views views, int index, value, view):
        if value is None or isinstance(value, (str, bytes, dict, set)):
            array = None
        else:
            try:
                array = np.asarray(value)
            except (TypeError, ValueError):
                array = None
        if array is None or array.dtype.kind in "OSUMm":
            raise _errors.not_an_array(
                index, layout.count - layout.operands, _result.describe(value),
                self.wanted(layout, layout.operands + index))
        if isinstance(value, (bool, int, float, complex, list, tuple)) and not isinstance(
            value, np.generic
        ):
            # Python numbers have no precision of their own
            whole = array.dtype.kind in "iu" and view.dtype.kind in "iu"  # NumPy checks the range
            if whole or np.can_cast(array.dtype, view.dtype, "same_kind"):
                return np.asarray(value, view.dtype)
        return array

    cdef str wanted(self, Layout layout, int i):
        return f"{layout.seen[i]}[{','.join(map(str, layout.shapes[i]))}]"

    cdef int check_released(self, Views views) except -1:
        """Raise if the function still holds a view: its memory will soon be something else."""
        cdef int i
        # a reference cycle holds nothing that anybody can reach; most are young
        for generation in (0, 2):
            gc.collect(generation)
            if all([Py_REFCNT(views.items[i]) == 1 for i in range(views.layout.count)]):
                return 0
        for i in range(views.layout.count):
            if Py_REFCNT(views.items[i]) != 1:
                n = views.layout.operands
                name = self.names[i] if i < n else f"its result {i - n}"
                raise _errors.kept_view(name)
        return 0

    cdef JB_Error* report(
        self, JB_CallFrame* frame, Layout layout, cnp.npy_intp iteration, exception
    ) noexcept:
        try:
            operands = ["?"] * len(self.names)
            iterations = 1
            if layout is not None:
                iterations = layout.iterations
                operands = [
                    f"{layout.seen[i]}[{','.join(map(str, layout.shapes[i]))}]"
                    for i in range(layout.operands)
                ]
            code, text = _errors.message(
                self.label, self.names, operands, iteration, iterations, exception)
            encoded = text.encode("utf-8", "replace").replace(b"\0", b"?")
            _errors.remember(exception, encoded.decode("utf-8"))
            return make_error(frame, code, encoded)
        except BaseException:
            return make_error(frame, 13, b"jaxbind: a call failed, and so did describing why")


cdef int execute_or_raise(CallSite site, JB_CallFrame* frame, cnp.npy_intp* iteration) except -1:
    return site.execute(frame, iteration)


cdef int propagate() except -1:
    """Raise the exception that is set."""
    return -1


# Called through a pointer without exceptions, so that `run` needs no `try`: saving the thread's
# exception state would cost a tenth of a call. -1 says that one is set.
ctypedef int (*execute_function)(CallSite, JB_CallFrame*, cnp.npy_intp*) noexcept
cdef execute_function execute_site = <execute_function>execute_or_raise


cdef int convert(target, source) except -1:
    """Copy into another dtype, silently, as JAX converts: an overflow is no fault of a function."""
    with np.errstate(all="ignore"):
        np.copyto(target, source, casting="unsafe")
    return 0


cdef bint has_none(tuple values):
    for value in values:
        if value is None:
            return True
    return False


cdef bint same_shape(array, view) noexcept:
    cdef int rank = cnp.PyArray_NDIM(view)
    # an array without dimensions has no place for them: memcmp must not be given NULL
    return cnp.PyArray_NDIM(array) == rank and (rank == 0 or memcmp(
        cnp.PyArray_DIMS(array), cnp.PyArray_DIMS(view), rank * sizeof(cnp.npy_intp)) == 0)


cdef bint broadcasts(tuple shape, tuple wanted, int loop):
    """Whether only loop dimensions differ, where ``shape`` has size 1."""
    return len(shape) == len(wanted) and shape[loop:] == wanted[loop:] and all(
        [s == w or s == 1 for s, w in zip(shape[:loop], wanted[:loop])])


cdef JB_Error* execute_python(JB_CallFrame* frame, SiteHead* head) noexcept with gil:
    return (<CallSite>head.owner).run(frame)


cdef void do_chunk(void* data, int64_t chunk) noexcept nogil:
    cdef jb_fpenv saved = jb_fp_enter()
    take_chunk(<Chunks*>data, chunk)
    jb_fp_leave(saved)


cdef void take_chunk(Chunks* job, int64_t chunk) noexcept with gil:
    (<CallSite>job.site).iterate_chunk(job, chunk)
