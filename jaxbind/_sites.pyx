"""The one handler, and the life of a call site.

    instantiate   the name and the site in the program are resolved to a `Site`, once; XLA owns
                  a reference to it, given back by `drop_site` when the executable dies
    execute       the site's own `execute`: a function over NumPy views (`_pycall`, which takes
                  the GIL) or a compiled loop (`_loops`, which does not)

In a program on a GPU the same happens between copies to and from the host (`_device.h`).
"""

from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uintptr_t

import time

from jaxbind import _errors

from jaxbind._frame cimport (
    answered_metadata,
    get_state,
    jb_copy_frame,
    jb_fp_enter,
    jb_fp_leave,
    jb_fpenv,
    jb_frame_flaw,
    make_error,
    set_state,
    string_attribute,
)
from jaxbind._abi cimport (
    JB_ByteSpan,
    JB_CallFrame,
    JB_Error,
    JB_Error_Code_CANCELLED,
    JB_Error_Code_INTERNAL,
    JB_Error_Code_INVALID_ARGUMENT,
    JB_Error_Code_NOT_FOUND,
    JB_ExecutionStage_EXECUTE,
    JB_ExecutionStage_INSTANTIATE,
    JB_TypeId,
    JB_TypeInfo,
)

cdef extern from "_flight.h":
    bint jb_enter_call() noexcept nogil
    void jb_leave_call() noexcept nogil
    bint jb_may_take_gil() noexcept nogil
    void jb_set_leaving() noexcept nogil
    void jb_keep_strays_waiting() noexcept nogil
    long jb_count() noexcept nogil
    void jb_forget_calls() noexcept nogil

cdef extern from "_device.h":
    const int JB_DRIVER_FUNCTIONS
    void jb_set_driver(int function, uintptr_t address) noexcept nogil
    JB_Error* jb_on_host(
        JB_CallFrame* frame, JB_Error* (*call)(JB_CallFrame*) noexcept nogil
    ) noexcept nogil


cdef class Site:
    """One call site of a compiled program."""

    def __cinit__(self, *args, **kwargs):
        self.head.execute = not_made
        self.head.owner = <PyObject*>self

    def take_tokens(self):
        """Expect a token behind the operands and the results, as ordered effects have it."""
        self.head.tokens = True


cdef object watching = None
cdef bint watch_finite = False
cdef bint watched = False


cdef bint is_watching() noexcept nogil:
    return watched


cdef object watch_call(list names, list operands, list results, bint shared):
    kind = watching
    if kind is None:  # the block has ended since
        return None
    return kind(names, operands, results, shared, watch_finite)


cdef class Frame:

    @staticmethod
    cdef Frame of(JB_CallFrame* frame):
        cdef Frame made = Frame()
        made.frame = frame
        return made


cdef JB_Error* tell(
    JB_CallFrame* frame, str label, list names, list operands, int64_t iteration,
    int64_t iterations, exception, list kept,
) noexcept:
    try:
        code, text = _errors.message(
            label, names, operands, iteration, iterations, exception, kept)
        encoded = text.encode("utf-8", "replace").replace(b"\0", b"?")
        _errors.remember(exception, encoded.decode("utf-8"))
        return make_error(frame, code, encoded)
    except BaseException:
        return make_error(
            frame, JB_Error_Code_INTERNAL, b"jaxbind: a call failed, and so did describing why")


def set_debug(watch, bint finite):
    """Have calls watched by this class (``None``: not)."""
    global watching, watch_finite, watched
    watching, watch_finite, watched = watch, finite, watch is not None


cdef JB_Error* unsound(JB_CallFrame* frame, const char* text) noexcept nogil:
    return make_error(frame, JB_Error_Code_INVALID_ARGUMENT, text)


cdef JB_Error* not_made(JB_CallFrame* frame, SiteHead* head) noexcept nogil:
    return make_error(frame, JB_Error_Code_INTERNAL, b"jaxbind: a call site that was not finished")


REFUSED = "jaxbind: the interpreter is leaving"
cdef bytes refused = REFUSED.encode()
cdef const char* refused_text = refused


cdef JB_Error* refuse(JB_CallFrame* frame) noexcept nogil:
    return make_error(frame, JB_Error_Code_CANCELLED, refused_text)


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


# XLA assigns them; the runtimes of CPU and GPU each count for themselves.
cdef JB_TypeId site_type_id
cdef JB_TypeId device_type_id
cdef JB_TypeInfo site_type_info
site_type_id.type_id = 0
device_type_id.type_id = 0
site_type_info.struct_size = sizeof(JB_TypeInfo)
site_type_info.extension_start = NULL
site_type_info.deleter = drop_site

cdef object open_site = None
cdef object load_driver = None


cdef JB_Error* instantiate(JB_CallFrame* frame) noexcept nogil:
    return instantiate_with(frame, &site_type_id)


cdef JB_Error* instantiate_on_device(JB_CallFrame* frame) noexcept nogil:
    return instantiate_with(frame, &device_type_id)


cdef JB_Error* instantiate_with(JB_CallFrame* frame, JB_TypeId* type_id) noexcept nogil:
    if answered_metadata(frame, type_id):
        return NULL
    if jb_frame_flaw(frame) != NULL or frame.api == NULL:
        return unsound(frame, b"jaxbind: a call frame that cannot be read")
    if frame.stage != JB_ExecutionStage_INSTANTIATE:
        return unsound(frame, b"jaxbind: a call site is made at the instantiate stage only")
    if not jb_enter_call():
        return refuse(frame)
    cdef jb_fpenv saved = jb_fp_enter()  # subnormal static parameters stay what they are
    cdef JB_Error* error = instantiate_site(frame, type_id)
    jb_fp_leave(saved)
    jb_leave_call()
    return error


cdef JB_Error* instantiate_site(JB_CallFrame* frame, JB_TypeId* type_id) noexcept with gil:
    cdef const JB_ByteSpan* name = string_attribute(frame, b"name")
    cdef const JB_ByteSpan* text = string_attribute(frame, b"site")
    cdef JB_Error* error
    cdef Site site
    if name == NULL or text == NULL:
        return unsound(frame, b"jaxbind: a call site without name or site")
    if type_id == &device_type_id:
        try:
            load_driver()
        except BaseException as exception:
            encoded = f"jaxbind: {exception}".encode("utf-8", "replace").replace(b"\0", b"?")
            return make_error(frame, JB_Error_Code_INTERNAL, encoded)
    try:
        site = open_site(
            name.ptr[:name.len].decode("utf-8"), text.ptr[:text.len].decode("utf-8"))
    except BaseException as exception:
        message = f"jaxbind: cannot find the function of a call site: {exception}"
        encoded = message.encode("utf-8", "replace").replace(b"\0", b"?")
        return make_error(frame, JB_Error_Code_NOT_FOUND, encoded)
    error = set_state(frame, type_id, <void*>&site.head)
    if error == NULL:
        Py_INCREF(site)  # XLA's reference, which `drop_site` gives back
    return error


cdef void drop_site(void* state) noexcept nogil:
    if jb_may_take_gil():
        release_site(<SiteHead*>state)


cdef void release_site(SiteHead* head) noexcept with gil:
    Py_DECREF(<object>head.owner)


cdef JB_Error* execute(JB_CallFrame* frame) noexcept nogil:
    cdef jb_fpenv saved
    cdef JB_Error* error
    if answered_metadata(frame, &site_type_id):
        return NULL
    saved = jb_fp_enter()  # first of all: it waits for all that is computed before it
    error = execute_call(frame, &site_type_id)
    jb_fp_leave(saved)
    return error


cdef JB_Error* execute_on_device(JB_CallFrame* frame) noexcept nogil:
    cdef jb_fpenv saved
    cdef JB_Error* error
    if answered_metadata(frame, &device_type_id):
        return NULL
    saved = jb_fp_enter()
    error = jb_on_host(frame, execute_of_device)
    jb_fp_leave(saved)
    return error


cdef JB_Error* execute_of_device(JB_CallFrame* frame) noexcept nogil:
    return execute_call(frame, &device_type_id)


cdef JB_Error* execute_call(JB_CallFrame* frame, JB_TypeId* type_id) noexcept nogil:
    cdef void* state
    cdef JB_Error* error
    if jb_frame_flaw(frame) != NULL or frame.api == NULL:
        return unsound(frame, b"jaxbind: a call frame that cannot be read")
    if frame.stage != JB_ExecutionStage_EXECUTE:
        return unsound(frame, b"jaxbind: a call happens at the execute stage only")
    if not jb_enter_call():
        return refuse(frame)
    error = get_state(frame, type_id, &state)
    if error == NULL and state == NULL:
        error = make_error(frame, JB_Error_Code_INTERNAL, b"jaxbind: a call site that was not made")
    elif error == NULL and (<SiteHead*>state).tokens:
        error = execute_in_order(frame, <SiteHead*>state)
    elif error == NULL:
        error = (<SiteHead*>state).execute(frame, <SiteHead*>state)
    jb_leave_call()
    return error


cdef JB_Error* execute_in_order(JB_CallFrame* frame, SiteHead* head) noexcept nogil:
    """Without the token that is the last operand, and the last result: it carries no data."""
    cdef JB_CallFrame inner
    if frame.args.size < 1 or frame.rets.size < 1:
        return unsound(frame, b"jaxbind: an ordered call without a token")
    jb_copy_frame(&inner, frame)
    inner.args.size -= 1
    inner.rets.size -= 1
    return head.execute(&inner, head)


def set_driver(list addresses):
    """Copy by these functions of CUDA's driver: see `jb_driver`."""
    if len(addresses) != JB_DRIVER_FUNCTIONS:
        raise ValueError(f"{JB_DRIVER_FUNCTIONS} functions are wanted, got {len(addresses)}")
    for i, address in enumerate(addresses):
        jb_set_driver(i, address)


def capsules(opener, loader):
    """Handlers and state types as capsules, in the form that ``jax.ffi`` registers, by platform.

    Args:
      opener: called with the name and the site when XLA instantiates a call site; returns
        the `Site`.
      loader: called before, on a GPU, to make its driver known (`set_driver`).
    """
    global open_site, load_driver
    open_site, load_driver = opener, loader
    return {
        "cpu": registered(instantiate, execute, &site_type_id),
        "CUDA": registered(instantiate_on_device, execute_on_device, &device_type_id),
    }


ctypedef JB_Error* (*Handler)(JB_CallFrame*) noexcept nogil


cdef dict registered(Handler instantiate, Handler execute, JB_TypeId* type_id):
    return {
        "target": {
            "instantiate": PyCapsule_New(<void*>instantiate, NULL, NULL),
            "execute": PyCapsule_New(<void*>execute, NULL, NULL),
        },
        "state": {
            "type_id": PyCapsule_New(<void*>type_id, NULL, NULL),
            "type_info": PyCapsule_New(<void*>&site_type_info, NULL, NULL),
        },
    }
