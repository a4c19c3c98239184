"""Feed call frames that XLA would never make to the handlers: each ends in an error or succeeds.

``python tests/fuzz_frames.py --frames N --seed S``. A crash, or memory written outside of a buffer,
is a failure; the seed of the last frame is printed for it. ``--device`` feeds the handlers for a GPU,
which is memory of the host here, under addresses at which there is none.
"""

from __future__ import annotations

import argparse
import ctypes as c
import faulthandler
import random
import sys
import threading
from functools import partial

import jax
import numpy as np
import scipy.special

import jaxbind
from jaxbind import _dtypes, _open, _sites

jax.config.update("jax_enable_x64", True)

# The structures of jaxbind/xla_ffi.h ---------------------------------------------------------------


class Extension(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("type", c.c_int), ("next", c.c_void_p)]


class MetadataExtension(c.Structure):
    _fields_ = [("base", Extension), ("metadata", c.c_void_p)]


class Buffer(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("dtype", c.c_int),
        ("data", c.c_void_p),
        ("rank", c.c_int64),
        ("dims", c.c_void_p),
    ]


class ByteSpan(c.Structure):
    _fields_ = [("ptr", c.c_void_p), ("len", c.c_size_t)]


class List(c.Structure):
    """Operands or results."""

    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("size", c.c_int64),
        ("types", c.c_void_p),
        ("items", c.c_void_p),
    ]


class Attributes(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("size", c.c_int64),
        ("types", c.c_void_p),
        ("names", c.c_void_p),
        ("values", c.c_void_p),
    ]


class Frame(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("api", c.c_void_p),
        ("ctx", c.c_void_p),
        ("stage", c.c_int),
        ("args", List),
        ("rets", List),
        ("attrs", Attributes),
        ("future", c.c_void_p),
    ]


FUNCTION = c.CFUNCTYPE(c.c_void_p, c.c_void_p)


class Version(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("major", c.c_int),
        ("minor", c.c_int),
    ]


class Api(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("version", Version),
        ("internal", c.c_void_p),
        *[
            (name, c.c_void_p)
            for name in (
                "error_create error_message error_destroy register stream type_register context"
                " state_set state_get allocate free schedule num_threads"
            ).split()
        ],
    ]


class ErrorCreate(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("message", c.c_char_p),
        ("code", c.c_int),
    ]


class StreamGet(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("ctx", c.c_void_p),
        ("stream", c.c_void_p),
    ]


class State(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("ctx", c.c_void_p),
        ("stage", c.c_int),
        ("type_id", c.c_void_p),
        ("state", c.c_void_p),
    ]


class Schedule(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("ctx", c.c_void_p),
        ("task", c.CFUNCTYPE(None, c.c_void_p)),
        ("data", c.c_void_p),
    ]


class NumThreads(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("ctx", c.c_void_p),
        ("count", c.POINTER(c.c_int64)),
    ]


class TypeInfo(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("extension_start", c.c_void_p),
        ("deleter", c.CFUNCTYPE(None, c.c_void_p)),
    ]


# A runtime -----------------------------------------------------------------------------------------


class Runtime:
    """As much of XLA as a handler sees."""

    def __init__(self):
        self.message, self.state = None, None
        self.kept = [
            FUNCTION(f)
            for f in (
                self.error,
                self.set_state,
                self.get_state,
                self.schedule,
                self.threads,
                self.stream,
            )
        ]
        pointers = [c.cast(f, c.c_void_p).value for f in self.kept]
        self.api = Api(struct_size=c.sizeof(Api), version=Version(c.sizeof(Version), None, 0, 3))
        names = ("error_create", "state_set", "state_get", "schedule", "num_threads", "stream")
        for name, pointer in zip(names, pointers):
            setattr(self.api, name, pointer)

    def error(self, args):
        self.message = ErrorCreate.from_address(args).message
        return 1

    def set_state(self, args):
        self.state = State.from_address(args).state
        return 0

    def get_state(self, args):
        State.from_address(args).state = self.state
        return 0

    def schedule(self, args):
        given = Schedule.from_address(args)
        task, data = c.cast(given.task, c.c_void_p).value, given.data
        call = c.CFUNCTYPE(None, c.c_void_p)(task)
        threading.Thread(target=call, args=(data,)).start()
        return 0

    def threads(self, args):
        NumThreads.from_address(args).count[0] = 3
        return 0

    def stream(self, args):
        StreamGet.from_address(args).stream = STREAM
        return 0


# A device ------------------------------------------------------------------------------------------

STREAM, CONTEXT = 0x5000, 0x6000
#: from addresses of the host to those of the device, at which nothing is
AWAY = 1 << 62
#: blocks, which the handlers keep
PINNED = {}


class Driver:
    """As much of CUDA's driver as copies need; ``fails`` names a function that does."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.broken, self.pending = None, []
        self.fails, self.current, self.text = None, [], c.create_string_buffer(b"all is lost")
        word, size = c.c_void_p, c.c_size_t
        kinds = {
            "context_of": (word, c.POINTER(word)),
            "push": (word,),
            "pop": (c.POINTER(word),),
            "to_host": (word, word, size, word),
            "to_device": (word, word, size, word),
            "wait": (word,),
            "pin": (c.POINTER(word), size, c.c_uint),
            "unpin": (word,),
            "describe": (c.c_int, c.POINTER(word)),
        }
        self.kept = [c.CFUNCTYPE(c.c_int, *kinds[name])(partial(self.call, name)) for name in kinds]
        _sites.set_driver([c.cast(f, word).value for f in self.kept])

    def call(self, name, *args):
        if name == "describe":
            args[1][0] = c.addressof(self.text)
            return 0
        if name == self.fails:
            return 700
        try:
            return getattr(self, name)(*args) or 0
        except BaseException as error:  # nobody else sees it
            self.broken = self.broken or error
            return 701

    def context_of(self, stream, context):
        assert stream == STREAM
        context[0] = CONTEXT

    def push(self, context):
        self.current.append(context)

    def pop(self, context):
        context[0] = self.current.pop()

    def to_host(self, to, device, size, stream):
        assert (stream, self.current) == (STREAM, [CONTEXT])
        self.pending.append((to, device - AWAY, size))

    def to_device(self, device, host, size, stream):
        assert (stream, self.current) == (STREAM, [CONTEXT])
        self.pending.append((device - AWAY, host, size))

    def wait(self, stream):
        assert (stream, self.current) == (STREAM, [CONTEXT])
        for copy in self.pending:
            c.memmove(*copy)
        self.pending = []

    def pin(self, block, size, flags):
        """Half of the time there is none: then memory is taken that is as large as it must be."""
        assert (flags, self.current) == (1, [CONTEXT])
        if self.random.randrange(2):
            return 2
        made = c.create_string_buffer(size)
        block[0] = c.addressof(made)
        PINNED[block[0]] = made
        return 0

    def unpin(self, block):
        assert self.current == [CONTEXT]
        del PINNED[block]


def pointer_of(capsule):
    get = c.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = c.c_void_p, [c.py_object, c.c_char_p]
    return get(capsule, None)


CAPSULES = _sites.capsules(_open.open_site, lambda: None)
HANDLERS = {
    platform: {
        stage: c.CFUNCTYPE(c.c_void_p, c.POINTER(Frame))(pointer_of(capsule))
        for stage, capsule in made["target"].items()
    }
    for platform, made in CAPSULES.items()
}
DROP = TypeInfo.from_address(pointer_of(CAPSULES["cpu"]["state"]["type_info"])).deleter

# Functions of each kind ----------------------------------------------------------------------------


def added(x, y):
    return x + y


def written(x, out):
    out[...] = x.sum(-1)


def two(x):
    return x, x.astype(np.int32)


libm = c.CDLL(None)
libm.hypot.argtypes, libm.hypot.restype = [c.c_double, c.c_double], c.c_double

FLOAT, SINGLE, INTEGER = np.dtype(float), np.dtype(np.float32), np.dtype(np.int32)
#: a binding with the dtypes and core ranks of its operands
FUNCTIONS = [
    (jaxbind.bind(added, "(n),(n)->(n)"), [FLOAT, FLOAT], [1, 1]),
    (jaxbind.bind(added, "(),()->()", vectorized=True), [SINGLE, SINGLE], [0, 0]),
    (jaxbind.bind(written, "(n)->()", threads=2), [FLOAT], [1]),
    (jaxbind.bind(written, "(n)->()", compute_dtype=float), [SINGLE], [1]),
    (jaxbind.bind(two, "(n)->(n),(n)", dtype=(float, np.int32), order="F"), [FLOAT], [1]),
    (jaxbind.bind(np.add), [FLOAT, FLOAT], [0, 0]),
    (jaxbind.bind(scipy.special.erfcx, compute_dtype=float), [SINGLE], [0]),
    (jaxbind.bind(scipy.special.jv, threads=2), [INTEGER, FLOAT], [0, 0]),
    (jaxbind.bind(np.linalg._umath_linalg.inv), [FLOAT], [2]),
    (jaxbind.bind(jaxbind.Kernel(libm.hypot), threads=0), [FLOAT, SINGLE], [0, 0]),
]
REGION, GUARD = 1 << 16, 64
DIMS = [-1, 0, 1, 1, 2, 2, 3, 3, 4, 7, 1 << 40, 1 << 62]


def sites(loop):
    """Name, site and buffers of a call of each function with ``loop`` loop dimensions."""
    found = []
    for binding, dtypes, ranks in FUNCTIONS:
        shapes = [(2,) * loop + (3,) * rank for rank in ranks]
        given = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes)]
        lowered = jax.jit(binding).lower(*given)
        operation = next(o for o in operations(lowered.compiler_ir()) if "custom_call" in o.name)
        config = operation.attributes["mhlo.backend_config"]
        name, site = (str(config[key])[1:-1].replace('\\"', '"') for key in ("name", "site"))
        results = jax.tree.leaves(lowered.out_info)
        buffers = [(s.shape, _dtypes.CODE_OF[np.dtype(s.dtype)]) for s in (*given, *results)]
        found.append((name, site, buffers, len(given), lowered))
    return found


def operations(module):
    for function in module.body:
        for block in function.regions[0]:
            for operation in block:
                yield operation.operation


class Fuzzer:
    """Frames for one site after the other, the first right, the others with faults."""

    def __init__(self, seed, device=False):
        self.random = random.Random(seed)
        self.runtime = Runtime()
        self.driver = Driver(seed) if device else None
        self.handlers = HANDLERS["CUDA" if device else "cpu"]
        self.at_home = False
        self.memory = [c.create_string_buffer(REGION + 2 * GUARD) for _ in range(4)]
        for memory in self.memory:
            c.memset(memory, 0xA5, len(memory))

    def buffer(self, index, shape, code):
        dims = (c.c_int64 * 72)(*shape)
        address = c.addressof(self.memory[index % 4]) + GUARD
        if self.driver is not None and not self.at_home:
            address += AWAY
        made = Buffer(c.sizeof(Buffer), None, code, address, len(shape), c.addressof(dims))
        self.keep += [dims, made]
        return made, dims

    def frame(self, name, site, buffers, operands, stage):
        self.keep = []
        made = [self.buffer(i, *b) for i, b in enumerate(buffers)]
        pointers = (c.c_void_p * 8)(*[c.addressof(b) for b, _ in made])
        results = (c.c_void_p * 8)(*[c.addressof(b) for b, _ in made[operands:]])
        types, other = (c.c_int * 8)(*[1] * 8), (c.c_int * 8)(*[1] * 8)
        spans = []
        for text in (b"name", name.encode(), b"site", site.encode()):
            data = c.create_string_buffer(text)
            spans.append(ByteSpan(c.addressof(data), len(text)))
            self.keep += [data, spans[-1]]
        names = (c.c_void_p * 2)(c.addressof(spans[0]), c.addressof(spans[2]))
        values = (c.c_void_p * 2)(c.addressof(spans[1]), c.addressof(spans[3]))
        kinds = (c.c_int * 2)(4, 4)
        self.keep += [pointers, results, types, other, names, values, kinds]
        at = c.addressof
        frame = Frame(
            c.sizeof(Frame),
            None,
            at(self.runtime.api),
            1,
            stage,
            List(c.sizeof(List), None, operands, at(types), at(pointers)),
            List(c.sizeof(List), None, len(buffers) - operands, at(other), at(results)),
            Attributes(c.sizeof(Attributes), None, 2, at(kinds), at(names), at(values)),
            None,
        )
        return frame, made, (pointers, results, types, other, spans, names, values, kinds)

    def spoil(self, frame, made, arrays):
        """One fault, or one thing that is unusual."""
        r = self.random
        pointers, results, types, other, spans, names, values, kinds = arrays
        buffer, dims = r.choice(made)
        side = r.choice([frame.args, frame.rets])
        k = r.randrange(8)
        extension = Extension(c.sizeof(Extension), r.choice([1, 2, 77]), None)
        metadata = MetadataExtension(extension, None)
        self.keep += [extension, metadata]
        match r.randrange(26):
            case 0:
                side.size = r.choice([-1, 0, 1, 2, 3, 4])
            case 1:
                r.choice([types, other])[k] = r.choice([0, 2, -1, 99])
            case 2:
                r.choice([pointers, results])[k] = None
            case 3:
                side.types = None
            case 4:
                side.items = None
            case 5:
                buffer.struct_size = r.choice([0, 8, 47, 48, 49, 4096])
            case 6 | 7:
                buffer.dtype = r.randrange(-2, 40)
            case 8 | 9:
                buffer.rank = r.choice([-1, 0, 1, 2, 3, 4, 33, 64, 65, 1 << 40])
            case 10:
                buffer.dims = None
            case 11:
                buffer.data = None
            case 12 | 13 | 14:
                dims[r.randrange(5)] = r.choice(DIMS)
            case 15:
                frame.struct_size = r.choice([0, 8, 40, c.sizeof(Frame) - 8, c.sizeof(Frame) + 64])
            case 16:
                frame.stage = r.choice([-1, 0, 1, 2, 3, 4, 99])
            case 17:
                frame.extension_start = c.addressof(metadata)
            case 18:
                frame.ctx = None
            case 19:
                frame.attrs.size = r.choice([-1, 0, 1])
            case 20:
                names[r.randrange(2)] = None
            case 21:
                values[r.randrange(2)] = None
            case 22:
                kinds[r.randrange(2)] = r.choice([0, 1, 2, 3, 5, 99])
            case 23:
                r.choice(spans).len = r.randrange(4)
            case 24:
                r.choice(spans).ptr = None
            case 25:
                frame.api = r.choice([frame.api, None])

    def fits(self, made):
        """Whether no buffer says that it is larger than its memory."""
        for buffer, dims in made:
            size = 16
            for a in range(max(0, min(buffer.rank, 72))):
                size *= dims[a]
            if REGION < size < 1 << 60:
                return False
        return True

    def texts(self, name, site):
        """A name and a site, with letters changed."""
        r = self.random
        kind = r.randrange(12)
        if kind == 0:
            i = r.randrange(len(site))
            site = site[:i] + r.choice("()[],'0129-#TrueNone\x00é") + site[i + 1 :]
        elif kind == 1:
            i, j = sorted(r.randrange(len(site)) for _ in range(2))
            site = site[:i] + site[j:]
        elif kind == 2:
            name = r.choice([name + ".jvp", name[:-1], "", "x:y", "os:system", "sys:exit", "\n:a"])
        elif kind == 3:
            site = r.choice(["", "(" * 400, "[]" * 50, "1", "None", "-" * 5000 + "1", "((),)"])
        return name, site

    def call(self, function, frame):
        self.runtime.message = None
        error = function(c.byref(frame))
        if self.driver is not None:
            assert self.driver.broken is None, self.driver.broken
            assert not self.driver.pending or self.driver.fails == "wait", "copies go on"
            self.driver.pending = []
        assert (error is None) == (self.runtime.message is None), "an error without a text"
        for memory in self.memory:
            ends = memory[:GUARD] + memory[REGION + GUARD :]
            assert set(ends[:-1]) == {0xA5}, "memory outside of a buffer was written"
        return self.runtime.message

    def succeeds(self, *what):
        """A right call, which gives on a device what it gives without."""
        right, _, _ = self.frame(*what, 3)
        before = [memory.raw for memory in self.memory]
        assert self.call(self.handlers["execute"], right) is None, self.runtime.message
        if self.driver is None:
            return
        got = [memory.raw for memory in self.memory]
        for memory, raw in zip(self.memory, before):
            memory.raw = raw
        self.at_home = True
        right, _, _ = self.frame(*what, 3)
        assert self.call(HANDLERS["cpu"]["execute"], right) is None, self.runtime.message
        self.at_home = False
        assert got == [memory.raw for memory in self.memory], "other results on a device"

    def executes(self, frame):
        """Whether a call succeeds; some of the driver's functions fail."""
        fails = None
        if self.driver is not None and self.random.randrange(8) == 0:
            fails = self.random.choice("context_of push to_host to_device wait".split())
            self.driver.fails = fails
        said = self.call(self.handlers["execute"], frame)
        if self.driver is not None:
            self.driver.fails = None
            assert not self.driver.current, "the context is still there"
            assert fails is not None or b"is lost" not in (said or b""), said
        return said is None

    def go(self, name, site, buffers, operands, frames):
        """Instantiate, then execute; returns how many calls succeeded."""
        right, _, _ = self.frame(name, site, buffers, operands, 0)
        self.runtime.state = None
        said = self.call(self.handlers["instantiate"], right)
        assert said is None and self.runtime.state, said
        good, fine = self.runtime.state, 0
        self.succeeds(name, site, buffers, operands)
        for _ in range(frames):
            stage = self.random.choice([0, 3, 3, 3])
            texts = self.texts(name, site) if stage == 0 else (name, site)
            frame, made, arrays = self.frame(*texts, buffers, operands, stage)
            for _fault in range(self.random.choice([0, 1, 1, 2, 3])):
                self.spoil(frame, made, arrays)
            if not self.fits(made):
                continue
            if stage == 0:
                self.runtime.state = None
                self.call(self.handlers["instantiate"], frame)
                if self.runtime.state:
                    DROP(self.runtime.state)
                self.runtime.state = good
            else:
                fine += self.executes(frame)
        self.succeeds(name, site, buffers, operands)
        DROP(good)
        return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", action="store_true")
    options = parser.parse_args()
    faulthandler.enable()
    every = [site for loop in (0, 1, 3) for site in sites(loop)]
    each, done, fine, seed = 500, 0, 0, options.seed
    while done < options.frames:
        for site in every:
            print(f"seed {seed}: {site[0]}", file=sys.stderr, flush=True)
            fine += Fuzzer(seed, options.device).go(*site[:4], each)
            done += each
            seed += 1
            if done >= options.frames:
                break
    print(f"{done} frames, {fine} of them calls that succeeded")


if __name__ == "__main__":
    main()
