"""`Site`: how a call is written down in a program, and read again."""

from __future__ import annotations

import ast
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakValueDictionary

import jax
import numpy as np
from jax.tree_util import tree_structure, tree_unflatten

from jaxbind._call import Call, PyTreeDef
from jaxbind._contract import contract_of, example_of
from jaxbind._errors import log, short_repr
from jaxbind._handler import Handler
from jaxbind._identity import is_stable, name_of, root_of, token
from jaxbind._static import Static

if TYPE_CHECKING:
    from jaxbind._definition import Definition

_unwritten: WeakValueDictionary[str, Site] = WeakValueDictionary()


@dataclass(frozen=True, eq=False, kw_only=True)
class Site:
    """How one call site calls its function.

    Attributes:
      static: the static parameters.
      tree: the structure of the positional arguments.
      result: the structure of what the function returns.
      loop: the number of loop dimensions.
      vectorized: whether the function takes them itself.
      wanted: for a pullback or a transpose, for which arguments of the parent.
      kept: which leaves of the result are results of the call.
      seen: the dtype in which the function sees each operand, where it differs.
      declared: the dtype in which it gives each result, where it differs.
      threads: how many the loop dimensions are spread over.
      compiled: the dtypes of the compiled loop, if there is one.
      contract: what was declared when the program was made (`contract_of`).
      example: what a function in ``out=`` said then (`example_of`), if there is one.
    """

    static: Static
    tree: PyTreeDef
    result: PyTreeDef
    loop: int
    vectorized: bool
    wanted: tuple[bool, ...]
    kept: tuple[bool, ...]
    seen: tuple[str | None, ...]
    declared: tuple[str | None, ...]
    threads: int
    compiled: tuple[str, ...] | None
    contract: dict[str, str]
    example: tuple | None

    def text(self) -> str:
        """The canonical text, or a token of this process where there is none."""
        written = [self.static.literal(), _literal(self.tree), _literal(self.result)]
        if None in written:
            text = f"#{token()}"
            _unwritten[text] = self
            return text
        rest = tuple(getattr(self, name) for name in _PLAIN)
        return f"({', '.join(map(str, written))}, {rest!r})"

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site that was written as ``text``.

        Raises:
          LookupError: if it cannot be read in this process.
        """
        if text.startswith("#"):
            site = _unwritten.get(text)
            if site is None:
                raise LookupError(
                    "the program was compiled with a static parameter or an argument structure"
                    " that cannot be written down, by a process that is gone"
                )
            return site
        static, tree, result, rest = ast.literal_eval(text)
        if len(rest) != len(_PLAIN):
            raise LookupError(
                "the program was made with another version of jaxbind. Compile or export it again"
            )
        return cls(
            static=Static.decoded(static),
            tree=tree_structure(tree),
            result=tree_structure(result),
            **dict(zip(_PLAIN, rest, strict=True)),
        )

    def unwritten(self) -> str:
        """What of it has no canonical text."""
        for name, value in self.static.values.items():
            if Static({name: value}).literal() is None:
                return f"the static parameter {name}={short_repr(value)}, which is no literal"
        return "an argument or result of a structure that is no tuple, list or dict"


#: the fields of a site that are literals themselves
_PLAIN = tuple(f.name for f in fields(Site) if f.name not in ("static", "tree", "result"))


@lru_cache(maxsize=4096)
def _literal(tree: PyTreeDef) -> str | None:
    text = repr(tree_unflatten(tree, [0] * tree.num_leaves))
    try:
        return text if tree_structure(ast.literal_eval(text)) == tree else None
    except (ValueError, SyntaxError):
        return None


def describe(
    call: Call, structs: list[jax.ShapeDtypeStruct], exporting: bool
) -> tuple[str, str, Any]:
    """Name and site of a call, and what must stay alive until the program is compiled.

    That is nothing where the program says all: such programs can be exported.
    """
    definition = call.definition
    outputs = definition.outputs(call, structs)
    seen = definition.role.seen(call, structs)
    compiled = definition.options.compiled
    if isinstance(compiled, Handler):
        compiled.check(definition.label, call.static.values)
    loop = compiled and compiled.loop_for(seen)
    if compiled and not loop:
        shown = ", ".join(d.name for d in seen)
        log.info("%s: no loop of its own for %s: Python calls it", definition.label, shown)
    lacks = call.loop and definition.role.lacks(call, structs)
    site = Site(
        static=call.static,
        tree=call.tree,
        result=outputs.tree,
        loop=call.loop,
        vectorized=definition.options.vectorized and not lacks,
        wanted=definition.role.wanted(call),
        kept=outputs.kept,
        seen=_differing(seen, structs),
        declared=_differing(outputs.declared, outputs.structs),
        threads=definition.options.threads,
        compiled=tuple(d.name for d in loop.dtypes) if loop else None,
        contract=contract_of(definition),
        example=example_of(definition, structs, outputs),
    )
    name, text = name_of(definition, exporting), site.text()
    private = root_of(definition).private_name
    of_this_process = text.startswith("#") or (private is not None and name.startswith(private))
    owner = (definition, site) if of_this_process else None
    return name, text, owner


def _differing(dtypes: Any, structs: Any) -> tuple[str | None, ...]:
    return tuple(
        None if d == s.dtype else np.dtype(d).name for d, s in zip(dtypes, structs, strict=True)
    )


def refuse_to_export(label: str, owner: tuple[Definition, Site]) -> NoReturn:
    """For a call that only this process can make.

    Raises:
      ValueError: saying why, and the remedy.
    """
    definition, site = owner
    if is_stable(definition):
        why, remedy = site.unwritten(), "Pass numbers, strings and tuples of them"
    else:
        why = "a function that another process cannot import"
        name = root_of(definition).given_name
        if name is not None:
            why += f" (another one was bound under the name {name!r} since)"
        remedy = "Bind it at the top of a module (where its name is that of the binding or its own)"
        remedy += ", or give bind(name=...) a name under which the other process binds it, too"
    raise ValueError(f"{label} cannot be exported: its call needs {why}. {remedy}")
