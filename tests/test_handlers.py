"""XLA handlers that others compiled, and handlers in Cython against the installed headers."""

import ctypes
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import jax
import numpy as np
import pytest

import jaxbind
from jaxbind import Handler, testing

EXAMPLE = Path(__file__).parent.parent / "examples" / "cython_handler"
SOURCE = r"""
#include <stdint.h>
#include <string.h>
#include "xla/ffi/api/c_api.h"

static void *attribute(XLA_FFI_CallFrame *frame, const char *name, int type, int dtype) {
  for (int64_t i = 0; i < frame->attrs.size; i++) {
    XLA_FFI_ByteSpan *known = frame->attrs.names[i];
    if (known->len != strlen(name) || memcmp(known->ptr, name, known->len)) continue;
    if ((int)frame->attrs.types[i] != type) return 0;
    if (type == XLA_FFI_AttrType_SCALAR && (int)((XLA_FFI_Scalar *)frame->attrs.attrs[i])->dtype != dtype) return 0;
    return frame->attrs.attrs[i];
  }
  return 0;
}

/* y = a x + k + sum of the weights + the length of a text, for vectors */
XLA_FFI_Error *scale(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Metadata_Extension *extension = (XLA_FFI_Metadata_Extension *)frame->extension_start;
  if (extension && extension->extension_base.type == XLA_FFI_Extension_Metadata) {
    extension->metadata->api_version = frame->api->api_version;
    return 0;
  }
  XLA_FFI_Buffer *x = frame->args.args[0], *y = frame->rets.rets[0];
  XLA_FFI_Scalar *a = attribute(frame, "a", XLA_FFI_AttrType_SCALAR, XLA_FFI_DataType_F64);
  XLA_FFI_Scalar *k = attribute(frame, "k", XLA_FFI_AttrType_SCALAR, XLA_FFI_DataType_S64);
  XLA_FFI_Array *w = attribute(frame, "w", XLA_FFI_AttrType_ARRAY, 0);
  XLA_FFI_ByteSpan *text = attribute(frame, "text", XLA_FFI_AttrType_STRING, 0);
  const char *wrong = !(a && k && w && text) ? "an attribute is missing or has another type"
                    : x->rank != 1 || y->rank != 1 ? "x must be a vector"
                    : x->dims[0] && ((double *)x->data)[0] < -100 ? "x is too small" : 0;
  if (wrong) {
    XLA_FFI_Error_Create_Args args = {sizeof(args), 0, wrong, XLA_FFI_Error_Code_INVALID_ARGUMENT};
    return frame->api->XLA_FFI_Error_Create(&args);
  }
  double more = *(int64_t *)k->value + (double)text->len;
  for (size_t i = 0; i < w->size; i++) more += ((double *)w->data)[i];
  for (int64_t i = 0; i < x->dims[0]; i++)
    ((double *)y->data)[i] = *(double *)a->value * ((double *)x->data)[i] + more;
  return 0;
}
"""


@pytest.fixture(scope="module")
def scale(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handler")
    (folder / "handler.c").write_text(SOURCE)
    built = folder / "handler.so"
    options = ["-O2", "-w", "-shared", "-fPIC", f"-I{jax.ffi.include_dir()}"]
    subprocess.run(["cc", *options, folder / "handler.c", "-o", built], check=True)
    symbol = ctypes.CDLL(str(built)).scale
    f = jaxbind.bind(Handler(symbol, ["x"], attributes=["a", "k", "w", "text"]), "(n)->(n)")
    f.def_jvp(lambda p, t, *, a, k, w, text: a * t[0])
    f.def_vjp(lambda p, ct, *, a, k, w, text: a * ct)
    return f


STATIC = {"a": 2.0, "k": 10, "w": (0.5, 0.25), "text": "abc"}


def test_loops_run_around_it(scale, x64):
    x = np.arange(24.0).reshape(2, 3, 4)
    want = 2 * x + 13.75
    np.testing.assert_array_equal(scale(x, **STATIC), want)
    mapped = jax.jit(jax.vmap(lambda x: scale(x, **STATIC), in_axes=2, out_axes=2))
    np.testing.assert_array_equal(mapped(x), 2 * x + 13.75)
    assert mapped.lower(x).as_text().count("custom_call") == 1


def test_derivatives(scale, x64):
    testing.check(
        scale,
        static=STATIC,
        max_examples=10,
        elements=st.floats(-50, 50),
        dtypes=float,
        skip=["dtypes", "abstract"],  # it takes doubles only, and does not look
    )


def test_threads_and_out(scale, x64):
    f = jaxbind.bind(scale.function, out=lambda x, **_: x, threads=0)
    x = np.random.default_rng(0).normal(size=(500, 3))
    got = jax.jit(jax.vmap(lambda x: f(x, **STATIC)))(x)
    np.testing.assert_array_equal(got, 2 * x + 13.75)


def test_its_errors_pass(scale, x64):
    told = (
        r"scale reported failure: x is too small\n  called with x: float64\[1\]\n"
        r"  in iteration 1 over its loop dimensions"
    )
    with pytest.raises(Exception, match=told) as caught:
        jax.block_until_ready(scale(np.array([[1.0], [-101.0]]), **STATIC))
    if jax.version.__version_info__ >= (0, 12):  # older ones do not tell the handler's code
        assert str(caught.value).startswith("INVALID_ARGUMENT: ")
    with pytest.raises(Exception, match=told), jaxbind.debug():
        jax.block_until_ready(scale(np.array([[1.0], [-101.0]]), **STATIC))
    with pytest.raises(Exception, match="another type"):
        jax.block_until_ready(scale(np.ones(2), **{**STATIC, "k": 1.5}))


def test_attributes_are_checked(scale, x64):
    with pytest.raises(TypeError, match=r"static parameter text=<object .*> is no attribute"):
        scale(np.ones(2), **{**STATIC, "text": object()})
    with pytest.raises(TypeError, match="an XLA handler can only be called by XLA"):
        scale.function(np.ones(2), **STATIC)
    with pytest.raises(TypeError, match="leave out compute_dtype="):
        jaxbind.bind(scale.function, "(n)->(n)", compute_dtype=float)
    with pytest.raises(ValueError, match="the pointer is null"):
        Handler(0)


def test_one_name_is_one_name():
    handler = Handler(1, "abc", attributes="alpha")
    assert list(inspect.signature(handler).parameters) == ["abc", "alpha"]


def test_attributes_of_a_dtype_are_held_exactly(scale, x64):
    typed = Handler(scale.function.pointer.address, "x", attributes={"a": float, "k": np.int8})
    f = jaxbind.bind(typed, "(n)->(n)", name="scale")
    for k in (128, -129, 1.5, 2**70):
        with pytest.raises(
            TypeError, match=r"scale: static parameter k=.* attribute of dtype int8"
        ):
            f(np.ones(2), a=1.0, k=k)


@pytest.mark.slow
def test_the_cython_example(tmp_path):
    """A small package with its own setup.py, built against the headers of jaxbind."""
    folder = tmp_path / "cython_handler"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("*.c", "*.so", "build"))
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    program = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from jaxbind import testing
from smoothing import centre, smooth
x = np.random.default_rng(0).normal(size=(4, 7))
want, state = np.empty_like(x), 0
for i in range(7):
    want[:, i] = state = 0.3 * x[:, i] + 0.7 * state
np.testing.assert_allclose(smooth(x, alpha=0.3, backwards=False), want)
np.testing.assert_allclose(centre(x), x - x.mean(0), atol=1e-15)
for shape in [(3, 0), (0, 3), (0, 0)]:
    assert centre(np.ones(shape)).shape == shape
testing.check(smooth, static={"alpha": 0.3, "backwards": False}, max_examples=10, dtypes=float,
              skip=["dtypes"])
testing.check(centre, max_examples=10, dtypes=float, skip=["dtypes"])
try:
    smooth(x, alpha=2.0, backwards=False).block_until_ready()
except Exception as error:
    assert "alpha must be above 0" in str(error)
else:
    raise AssertionError
print("done")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True
    )
    assert ran.stdout.strip() == "done", ran.stderr
