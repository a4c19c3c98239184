"""What was declared of a function when a program was made, and whether that still holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxbind import _jax
from jaxbind._call import Call, Outputs
from jaxbind._identity import root_of
from jaxbind._ufuncs import ufunc_of

if TYPE_CHECKING:
    from jaxbind._definition import Definition


def contract_of(definition: Definition) -> dict[str, str]:
    """What was declared of a function, as far as programs depend on it, in words for errors.

    A program that was made under another contract is refused: it would call the function with what
    it does not expect. How many threads help is no part of it, since results do not depend on it.
    """
    root = root_of(definition)
    role: Any = root.role
    parameters, options, ufunc = root.calling, root.options, ufunc_of(root.function)
    operands = [*parameters.operands, *["*"] * parameters.variadic]
    static = [*sorted(parameters.static), *["**"] * parameters.any_static]
    told = {
        "signature": getattr(role.shapes, "signature", None),
        "ufunc": ufunc and ufunc.__name__,
        "operands": None if ufunc else ", ".join(operands),  # SciPy may rename its own
        "static parameters": ", ".join(static),
        "results": role.shapes.told(),
        "script": _script(root),
        "vectorized=": options.rules_vectorized,
        "compute_dtype=": options.compute_dtype and options.compute_dtype.name,
        "order=": options.order if options.order != "C" else None,
        "linear=": role.linear if role.linear is True else sorted(role.linear or ()),
        "multilinear=": sorted(role.multilinear),
        "nondiff=": sorted(role.nondiff),
        "aliases=": dict(options.aliases),
        "effect=": options.effect,
        "allow_jax=": options.allow_jax,
    }
    return {what: str(value) for what, value in told.items() if value}


def _script(root: Definition) -> str | None:
    """The script that a name of ``__main__`` belongs to: another one's has another function."""
    mains = ("__main__", "__mp_main__")  # the latter in processes that it has spawned
    if root.given_name is not None or not {root.module, root.home} & set(mains):
        return None
    return os.path.basename(getattr(sys.modules.get("__main__"), "__file__", None) or "")


def example_of(definition: Definition, structs: Sequence[Any], outputs: Outputs) -> tuple | None:
    """What a function in ``out=`` says of operands: there is no other way to compare it.

    With symbolic shapes nothing can be written down, since programs may not depend on them.
    """
    shapes = getattr(definition.role, "shapes", None)
    if not callable(getattr(shapes, "out", None)):
        return None
    results = [
        jax.ShapeDtypeStruct(s.shape, d)
        for s, d in zip(outputs.structs, outputs.declared, strict=True)
    ]
    if not all(isinstance(size, int) for s in (*structs, *results) for size in s.shape):
        return None
    return _jax.uses_x64(), *(tuple(map(_written, several)) for several in (structs, results))


def _written(struct: Any) -> tuple[tuple[int, ...], str]:
    return tuple(map(int, struct.shape)), np.dtype(struct.dtype).name


def refuse_another_contract(name: str, then: dict[str, str], now: dict[str, str]) -> None:
    """Raise ``LookupError`` where the function was declared otherwise when a program was made."""
    changes = [
        f"the {what} {then.get(what, '(none)')}; it is {now.get(what, '(none)')} now"
        for what in {**then, **now}
        if then.get(what) != now.get(what)
    ]
    if changes:
        raise LookupError(
            f"the program was made when {name} had {', and '.join(changes)}. Compile or export the"
            " program again"
        )


def refuse_another_example(name: str, call: Call, example: tuple | None) -> None:
    """Ask a function in ``out=`` again about the operands of a program; raises as above."""
    if example is None:
        return
    x64, given, made = example
    structs = [jax.ShapeDtypeStruct(*written) for written in given]
    with jax.enable_x64(x64):
        outputs = call.definition.outputs(call, structs)
        again = example_of(call.definition, structs, outputs)
    now = again[2] if again else None
    if now != made:
        refuse_another_contract(name, {"results": str(made)}, {"results": str(now)})
