"""The handler that calls a Python function on NumPy views of XLA's buffers.

The life of a call site:

    instantiate   the name and the site in the program are resolved to a `CallSite`, once; XLA
                  owns a reference to it, given back by `drop_site` when the executable dies
    execute       `execute_python` (no GIL) -> `run_site` (GIL) -> `CallSite.run`

What a call needs is kept between calls: `Layout` holds what the buffers look like, `Views` the
NumPy arrays over them, which are re-pointed and not made anew. A concurrent caller makes its
own views.
"""

from cpython.object cimport PyObject, PyObject_Call
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memset

cimport numpy as cnp

import gc

import numpy as np

from jaxbind import _dtypes, _errors, _result

from jaxbind._frame cimport (
    answered_metadata,
    enter_call,
    get_state,
    is_leaving,
    jb_fp_enter,
    jb_fp_leave,
    jb_fpenv,
    leave_call,
    make_error,
    operand,
    result as result_buffer,
    set_state,
    string_attribute,
)
from jaxbind._views cimport (
    JB_CHANGED,
    JB_SET_DATA,
    Layout,
    Views,
    new_view,
)
from jaxbind.xla_ffi cimport (
    JB_Buffer,
    JB_ByteSpan,
    JB_CallFrame,
    JB_Error,
    JB_TypeId,
    JB_TypeInfo,
)

cnp.import_array()

cdef extern from *:
    """
    #if defined(__linux__)
    #include <stdint.h>
    #include <sys/mman.h>
    #endif
    /* XLA hands out fresh pages; touching them for the first time costs more than most
       functions. Large results get huge pages, as NumPy's own allocations do. */
    static inline void JB_ADVISE_HUGE(char *start, size_t size) {
    #if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (size >= ((size_t)1 << 22)) {
            uintptr_t first = ((uintptr_t)start + 4095) & ~(uintptr_t)4095;
            uintptr_t end = ((uintptr_t)start + size) & ~(uintptr_t)4095;
            if (end > first) (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
        }
    #endif
    }
    """
    void JB_ADVISE_HUGE(char* start, size_t size) noexcept nogil

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
    """Fill results with this byte before each call (of any binding); a negative one ends it."""
    global poison
    poison = byte


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


cdef class CallSite:
    """One call site of a compiled program: a function, and how it is called."""

    cdef object function, tree, result_tree, tree_template, result_template
    cdef str label
    cdef list names, seen, declared, keyword_values
    cdef tuple kept, keyword_names
    cdef dict keywords
    cdef bint wants_out, vectorized, fortran, all_kept, unwrap, rule
    cdef int loop
    cdef Shape arguments, results
    cdef Layout layout
    cdef Views spare
    cdef object __weakref__

    def __init__(
        self, *, function, str label, list names, dict keywords, bint wants_out, int loop,
        bint vectorized, bint fortran, tree, result, bint unwrap, bint rule, tuple kept, list seen,
        list declared,
    ):
        self.function = function
        self.label = label
        self.names = names
        self.keywords = keywords
        self.keyword_names = tuple(keywords) + (("out",) if wants_out else ())
        self.keyword_values = list(keywords.values())
        self.wants_out = wants_out
        self.loop = loop
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
        cdef Layout layout = self.layout
        cdef Views views = self.spare
        if layout is None or not layout.matches(frame):
            layout = self.learn(frame)
            self.layout = layout
        self.spare = None  # a concurrent caller makes its own
        if views is None or views.layout is not layout:
            views = Views(layout, self.keyword_values, self.keyword_names, self.wants_out)
        self.loop_over(frame, layout, views, iteration)
        self.spare = views
        return 0

    cdef JB_Error* failed(self, JB_CallFrame* frame, cnp.npy_intp iteration) noexcept:
        """Describe the exception that is set."""
        try:
            propagate()
        except BaseException as exception:
            return self.report(frame, self.layout, iteration, exception)
        return NULL

    cdef Layout learn(self, JB_CallFrame* frame):
        cdef JB_Buffer* buffer
        cdef int64_t i, a
        specs = []
        for i in range(frame.args.size + frame.rets.size):
            if i < frame.args.size:
                buffer = operand(frame, i)
            else:
                buffer = result_buffer(frame, i - frame.args.size)
            if buffer == NULL:
                raise _errors.ContractError("got something other than a buffer from XLA")
            specs.append((<int>buffer.dtype, tuple([buffer.dims[a] for a in range(buffer.rank)])))
        if frame.args.size != len(self.seen) or frame.rets.size != len(self.declared):
            raise _errors.ContractError(
                f"got {frame.args.size} operands and {frame.rets.size} results; it was compiled"
                f" for {len(self.seen)} and {len(self.declared)}"
            )
        return Layout(
            specs, <int>frame.args.size, loop=self.loop, vectorized=self.vectorized,
            fortran=self.fortran, seen=self.seen, declared=self.declared)

    cdef int loop_over(
        self, JB_CallFrame* frame, Layout layout, Views views, cnp.npy_intp* iteration
    ) except -1:
        cdef int i, axis
        cdef cnp.npy_intp done
        cdef char** bases = views.bases
        cdef cnp.npy_intp* stride
        cdef list copies = None
        for i in range(layout.operands):
            bases[i] = <char*>operand(frame, i).data
        for i in range(layout.operands, layout.count):
            bases[i] = <char*>result_buffer(frame, i - layout.operands).data
            JB_ADVISE_HUGE(bases[i], layout.sizes_in_bytes[i])
            if poison >= 0:
                memset(bases[i], poison, layout.sizes_in_bytes[i])
        if layout.converts:
            copies = [
                None if layout.whole[i] is None else self.converted(layout, views, i)
                for i in range(layout.count)
            ]
        for axis in range(layout.loop):
            views.index[axis] = 0
        for done in range(layout.iterations):
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
        if copies is not None:
            for i in range(layout.operands, layout.count):
                if copies[i] is not None:
                    raw, seen = copies[i]
                    convert(raw, seen)
        return 0

    cdef tuple converted(self, Layout layout, Views views, int i):
        """A copy of buffer i in the dtype that the function knows, of the same memory order."""
        shape, seen_strides, raw_strides = layout.whole[i]
        raw = new_view(layout.raw[i], shape, tuple(raw_strides), i >= layout.operands)
        JB_SET_DATA(<PyObject*>raw, views.bases[i])
        memory = np.empty(raw.size, layout.seen[i])
        seen = np.ndarray(shape, layout.seen[i], memory, 0, seen_strides)
        if i < layout.operands:
            convert(seen, raw)
        views.bases[i] = cnp.PyArray_BYTES(memory)
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
            if np.can_cast(array.dtype, view.dtype, "same_kind"):
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
    return cnp.PyArray_NDIM(array) == rank and memcmp(
        cnp.PyArray_DIMS(array), cnp.PyArray_DIMS(view), rank * sizeof(cnp.npy_intp)) == 0


cdef bint broadcasts(tuple shape, tuple wanted, int loop):
    """Whether only loop dimensions differ, where ``shape`` has size 1."""
    return len(shape) == len(wanted) and shape[loop:] == wanted[loop:] and all(
        [s == w or s == 1 for s, w in zip(shape[:loop], wanted[:loop])])


# Handlers ---------------------------------------------------------------------------------------

cdef JB_TypeId site_type_id
cdef JB_TypeInfo site_type_info
site_type_id.type_id = 0  # XLA assigns it
site_type_info.struct_size = sizeof(JB_TypeInfo)
site_type_info.extension_start = NULL
site_type_info.deleter = drop_site

cdef object open_site = None


cdef JB_Error* instantiate_python(JB_CallFrame* frame) noexcept nogil:
    if answered_metadata(frame, &site_type_id):
        return NULL
    if not enter_call():
        return make_error(frame, 1, b"jaxbind: the interpreter is leaving")
    cdef JB_Error* error = instantiate_site(frame)
    leave_call()
    return error


cdef JB_Error* instantiate_site(JB_CallFrame* frame) noexcept with gil:
    cdef const JB_ByteSpan* name = string_attribute(frame, b"name")
    cdef const JB_ByteSpan* site = string_attribute(frame, b"site")
    cdef JB_Error* error
    if name == NULL or site == NULL:
        return make_error(frame, 3, b"jaxbind: a call site without name or site")
    try:
        state = open_site(
            name.ptr[:name.len].decode("utf-8"), site.ptr[:site.len].decode("utf-8"))
    except BaseException as exception:
        text = f"jaxbind: cannot find the function of a call site: {exception}"
        return make_error(frame, 5, text.encode("utf-8", "replace").replace(b"\0", b"?"))
    error = set_state(frame, &site_type_id, <void*>state)
    if error == NULL:
        Py_INCREF(state)  # XLA's reference, which `drop_site` gives back
    return error


cdef void drop_site(void* state) noexcept nogil:
    if not is_leaving():  # then nobody may take the GIL any more
        release_site(state)


cdef void release_site(void* state) noexcept with gil:
    Py_DECREF(<object>state)


cdef JB_Error* execute_python(JB_CallFrame* frame) noexcept nogil:
    cdef void* state
    cdef JB_Error* error
    if answered_metadata(frame, &site_type_id):
        return NULL
    if not enter_call():
        return make_error(frame, 1, b"jaxbind: the interpreter is leaving")
    error = get_state(frame, &site_type_id, &state)
    if error == NULL:
        error = run_site(frame, state)
    leave_call()
    return error


cdef JB_Error* run_site(JB_CallFrame* frame, void* state) noexcept with gil:
    return (<CallSite>state).run(frame)


def capsules(opener):
    """The handlers and the state type as capsules, in the form that ``jax.ffi`` registers.

    Args:
      opener: called with the name and the site when XLA instantiates a call site; returns
        the `CallSite`.
    """
    global open_site
    open_site = opener
    return {
        "target": {
            "instantiate": PyCapsule_New(<void*>instantiate_python, NULL, NULL),
            "execute": PyCapsule_New(<void*>execute_python, NULL, NULL),
        },
        "state": {
            "type_id": PyCapsule_New(<void*>&site_type_id, NULL, NULL),
            "type_info": PyCapsule_New(<void*>&site_type_info, NULL, NULL),
        },
    }
