"""What a user reads when a call fails: which binding, called with what, and where in it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np

# XLA's status codes (absl::StatusCode)
CANCELLED = 1
INVALID_ARGUMENT = 3
INTERNAL = 13

#: says what happens behind the scenes; silent unless a program configures logging
log = logging.getLogger("jaxbind")
log.addHandler(logging.NullHandler())

_OURS = os.path.dirname(os.path.abspath(__file__))


class ContractError(TypeError):
    """A function broke what was declared about it; the text says all, without a traceback."""


class KeptView(ContractError):
    """A function still holds a view of JAX's memory."""


#: the last exception and what JAX was told of it: one object, which threads replace at once
_last: tuple[BaseException, str] | None = None


class _Here(threading.local):
    """The same of this thread: calls outside jit mostly run on the thread that calls."""

    last: tuple[BaseException, str] | None = None


_here = _Here()


def last_exception() -> BaseException | None:
    """The exception that a bound function raised last, with its traceback; ``None`` if none did.

    JAX passes on its text alone. The variables of its frames are gone, since the arrays among them
    were JAX's memory. It is kept until the next one.
    """
    last = _last
    return None if last is None else last[0]


def remember(error: BaseException, text: str) -> None:
    """Keep an exception for `last_exception`, without the views of JAX's memory that it holds."""
    global _last
    log.debug("a bound function raised", exc_info=error)
    let_go(error)
    frames = _users_frames(error)
    if frames is not None or isinstance(error, ContractError):  # whose text says all
        error.__traceback__ = frames
    _last = _here.last = (error, text)


#: attributes of Python's own exceptions that hold what they are about
_SLOTS = ("obj", "value", "code")


def let_go(error: BaseException) -> None:
    """Take the views of JAX's memory out of an exception and the frames of its traceback."""
    for each in _chain(error):
        traceback.clear_frames(each.__traceback__)
        with contextlib.suppress(Exception):  # whatever a user's class does
            each.args = _without_views(each.args)
            held = {name: getattr(each, name) for name in _SLOTS if hasattr(each, name)}
            for name, value in (held | vars(each)).items():
                setattr(each, name, _without_views(value))


def _chain(error: BaseException) -> list[BaseException]:
    """An exception with its causes, its context and the exceptions that it groups."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is not None and all(each is not other for other in found):
            found.append(each)
            todo += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    return found


def _without_views(value: Any) -> Any:
    """Arrays in containers as copies."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (tuple, list, set):
        return type(value)(_without_views(item) for item in value)
    if type(value) is dict:
        return {key: _without_views(item) for key, item in value.items()}
    return value


def with_cause(error: BaseException) -> BaseException:
    """What to raise for an error of JAX's: the error, with the exception that it tells of as cause.

    JAX has two kinds for one thing: a program that has run before raises a bare ``ValueError``.

    An exception that is no ``Exception`` (``KeyboardInterrupt``, ``SystemExit``) is to be raised
    itself: it is meant for the whole program, and ``except Exception`` must not stop it. Raised
    where ``error`` is handled, it has that as its context.
    """
    own, _here.last = _here.last, None
    text = _text(error)
    cause = next((last[0] for last in (own, _last) if last and last[1] in text), None)
    if cause is None or error.__cause__ is not None:
        return error.with_traceback(_users_frames(error))
    if not isinstance(cause, Exception):
        return cause
    if type(error) is ValueError:
        error = jax.errors.JaxRuntimeError(text)
    error.__cause__ = cause
    return error


def message(
    label: str,
    names: Sequence[str],
    operands: Sequence[str],
    iteration: int,
    iterations: int,
    error: BaseException,
    kept: Sequence[str] = (),
) -> tuple[int, str]:
    """Status code and text for an exception that a function (or our check of it) raised.

    ``kept`` names operands and results of which it still holds a view.
    """
    called = ", ".join(f"{_short(n)}: {o}" for n, o in zip(names, operands, strict=True))
    where = f"\n  called with {called or 'no operands'}"
    if iterations > 1:
        where += f"\n  in iteration {iteration} of {iterations} over its loop dimensions"
    if kept and not isinstance(error, KeptView):
        where += (
            f"\n  a view of {kept[0]} is still held, by the function or by what its exception left"
            " behind; it shows a copy from now on"
        )
    if isinstance(error, ContractError):
        return INVALID_ARGUMENT, f"{label} {error}{where}"
    shown = _text(error)
    text = f"{type(error).__name__}: {shown}" if shown else type(error).__name__
    head = f"{text}\n  raised in {label}{where}{_hint(error)}"
    code = INTERNAL if isinstance(error, Exception) else CANCELLED
    return code, f"{head}\n{_user_traceback(error)}"


def kernel_message(
    label: str,
    names: Sequence[str],
    operands: Sequence[str],
    iteration: int,
    said: str,
    in_loop: bool,
) -> tuple[int, str]:
    """Status code and text for what a compiled kernel reported."""
    called = ", ".join(f"{_short(n)}: {o}" for n, o in zip(names, operands, strict=False))
    where = f"\n  in iteration {iteration} over its loop dimensions" if in_loop else ""
    return INTERNAL, f"{label} {said}\n  called with {called or 'no operands'}{where}"


def _text(error: BaseException) -> str:
    try:
        return _abridged(str(error))
    except BaseException:
        return "<unprintable>"


def _abridged(text: str) -> str:
    """Without the list of all of JAX's settings that it gives where a jit calls itself."""
    before, found, _ = text.partition("Recursively calling jit:")
    return f"{before}the function calls itself through JAX" if found else text


def short_repr(value: Any) -> str:
    """At most 60 characters of ``repr``, whatever a user's class does in it."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__} object>"
    return text if len(text) <= 60 else text[:57] + "..."


def _short(name: str) -> str:
    """``argument 1 (y)`` -> ``y``"""
    return name.rpartition("(")[2].rstrip(")") or name


def _hint(error: BaseException) -> str:
    if isinstance(error, ValueError) and "read-only" in _text(error):
        return (
            "\n  operands are read-only views of JAX's memory; work on a copy (x = x.copy()), or"
            " write the result into the parameter `out`"
        )
    return ""


def _users_frames(error: BaseException) -> TracebackType | None:
    """The traceback from the first line that is not ours."""
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return frames


def _user_traceback(error: BaseException) -> str:
    shown = traceback.TracebackException(type(error), error, _users_frames(error), compact=True)
    return _abridged("".join(shown.format())).rstrip()


def _is_ours(filename: str) -> bool:
    compiled = filename.startswith("jaxbind/") and filename.endswith(".pyx")
    return compiled or os.path.dirname(filename) == _OURS


def kept_view(name: str) -> KeptView:
    return KeptView(
        f"kept a view of {name} after it returned. The memory belongs to JAX, which will reuse"
        " it: keep a copy instead (x.copy())"
    )


def masked(index: int, count: int) -> ContractError:
    return ContractError(
        f"returned a masked array for {_result(index, count)}, and JAX has no masks: fill it"
        " (x.filled(value)), or return the mask as a result of its own"
    )


def wrong_shape(index: int, count: int, got: Any, wanted: str, rule: bool) -> ContractError:
    if rule:
        return ContractError(
            f"returned {got} for {_result(index, count)}, where {wanted} is wanted: a rule gives"
            " tangents of the shapes of the results, and cotangents of those of the arguments"
        )
    return ContractError(
        f"returned {got} for {_result(index, count)}; its declared shape and dtype are {wanted}."
        " Return that shape, or change the signature or out="
    )


def wrong_dtype(index: int, count: int, got: Any, wanted: str) -> ContractError:
    if str(got).startswith("complex") and not wanted.startswith("complex"):
        return ContractError(
            f"returned {got} for {_result(index, count)}; its declared shape and dtype are"
            f" {wanted}. Return its .real part (which is the cotangent of a real argument), or"
            " declare a complex dtype with dtype= or out="
        )
    return ContractError(
        f"returned {got} for {_result(index, count)}; its declared shape and dtype are {wanted}."
        " Return .astype(...), declare the other dtype with dtype= or out=, or say with"
        " compute_dtype= that the function only knows one dtype"
    )


def not_an_array(index: int, count: int, got: Any, wanted: str) -> ContractError:
    return ContractError(
        f"returned {got} for {_result(index, count)}; it must return an array: {wanted}."
        " (A function that writes in place has a parameter called out)"
    )


def replaced_in_out(where: str) -> ContractError:
    return ContractError(
        f"replaced out{where}, which holds JAX's memory, so that its result is not written; write"
        f" into it: out{where}[...] = ..."
    )


def returned_with_out(got: Any) -> ContractError:
    return ContractError(
        f"returned {got} although it has a parameter `out`; write the result into out and"
        " return None"
    )


def _result(index: int, count: int) -> str:
    return "its result" if count == 1 else f"result {index}"
