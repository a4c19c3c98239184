"""The laws of a binding: what must be true of it, each a function of concrete arguments.

``laws.adjoint(f, args)`` raises `jaxbind.testing.LawViolation` if the law is broken there, and
`Skip` if it says nothing; `LAWS` has them all, in order. In the messages f is the function, J its
Jacobian at the arguments, v a tangent, w a cotangent, Jᵀ the transpose without conjugation. For
complex numbers ``<a, b> = sum(a * b)``, again without conjugation; where J is linear only over the
real numbers (``conj``, ``real``), real parts are compared.
"""

from jaxbind.testing._law import Law
from jaxbind.testing._laws_derivatives import adjoint, jvp, jvp_linear
from jaxbind.testing._laws_function import (
    abstract,
    complete,
    deterministic,
    inputs_kept,
    jit,
    released,
    static,
)
from jaxbind.testing._laws_higher import higher
from jaxbind.testing._laws_linear import linear, transpose_transpose
from jaxbind.testing._laws_loops import loop_dims, sharded, vmap
from jaxbind.testing._laws_values import dtypes, export, special_values, threads
from jaxbind.testing._violation import Skip

#: all laws, in the order in which they are explained
LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        abstract,
        complete,
        inputs_kept,
        released,
        deterministic,
        jit,
        jvp,
        jvp_linear,
        adjoint,
        linear,
        transpose_transpose,
        higher,
        vmap,
        loop_dims,
        static,
        sharded,
        threads,
        export,
        dtypes,
        special_values,
    )
}

#: the order in which they are tried: a broken one explains those that follow
CAUSES_FIRST: tuple[Law, ...] = (
    abstract,
    released,
    inputs_kept,
    complete,
    deterministic,
    static,
    jit,
    linear,
    jvp_linear,
    jvp,
    adjoint,
    transpose_transpose,
    higher,
    vmap,
    loop_dims,
    threads,
    sharded,
    export,
    dtypes,
    special_values,
)

__all__ = [
    "CAUSES_FIRST",
    "LAWS",
    "Law",
    "Skip",
    "abstract",
    "adjoint",
    "complete",
    "deterministic",
    "dtypes",
    "export",
    "higher",
    "inputs_kept",
    "jit",
    "jvp",
    "jvp_linear",
    "linear",
    "loop_dims",
    "released",
    "sharded",
    "special_values",
    "static",
    "threads",
    "transpose_transpose",
    "vmap",
]
