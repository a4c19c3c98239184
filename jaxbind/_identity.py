"""Names in compiled programs <-> live functions.

A compiled program carries, for each call site, two strings: the *name* of the definition and the
*site*, which says how it is called. When XLA instantiates the call site, both are resolved to
a live function, once, and XLA owns the result. So nothing in a program is an address, and
what cannot be written down (a closure, a static parameter that is no literal) gets a token
that is unique to this process: another process can never mistake it for something else.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import sys
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from weakref import WeakValueDictionary

import jax
import numpy as np
from jax.tree_util import tree_structure, tree_unflatten

from jaxbind import _exit, _jax, _pycall, _sites
from jaxbind._call import Call, Outputs, PyTreeDef
from jaxbind._errors import log, short_repr
from jaxbind._handler import Handler
from jaxbind._parameters import Parameters
from jaxbind._static import Static
from jaxbind._ufuncs import ufunc_of
from jaxbind._wrt import Wrt

if TYPE_CHECKING:
    from jaxbind._definition import Definition

T = TypeVar("T")

#: stands between a function's name and its derivatives' in programs; no name that is given has it
STEP = "!"

_PROCESS = uuid.uuid4().hex[:16]
_count = itertools.count(1)
_counting = threading.Lock()
_definitions: WeakValueDictionary[str, Definition] = WeakValueDictionary()
#: the last one bound under each name that was given with bind(name=)
_given: WeakValueDictionary[str, Definition] = WeakValueDictionary()
_bindings: set[type] = set()
_unwritten: WeakValueDictionary[str, Site] = WeakValueDictionary()


def _number() -> int:
    with _counting:  # free-threaded Python may count twice alike
        return next(_count)


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
      contract: what was declared when the program was made (`_contract`).
      example: what a function in ``out=`` said then (`_example`), if there is one.
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
            token = f"#{_PROCESS}-{_number()}"
            _unwritten[token] = self
            return token
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


# Writing ----------------------------------------------------------------------------------------


def describe(
    call: Call, structs: list[jax.ShapeDtypeStruct], exporting: bool
) -> tuple[str, str, Any]:
    """Name and site of a call, and what must stay alive until the program is compiled.

    That is nothing where the program says all: such programs can be exported.
    """
    definition = call.definition
    outputs = definition.outputs(call, structs)
    seen = definition.role.seen(call, structs)
    if isinstance(definition.compiled, Handler):
        definition.compiled.check(definition.label, call.static.values)
    loop = definition.compiled and definition.compiled.loop_for(seen)
    if definition.compiled and not loop:
        shown = ", ".join(d.name for d in seen)
        log.info("%s: no loop of its own for %s: Python calls it", definition.label, shown)
    lacks = call.loop and definition.role.lacks(call, structs)
    site = Site(
        static=call.static,
        tree=call.tree,
        result=outputs.tree,
        loop=call.loop,
        vectorized=definition.vectorized and not lacks,
        wanted=definition.role.wanted(call),
        kept=outputs.kept,
        seen=_differing(seen, structs),
        declared=_differing(outputs.declared, outputs.structs),
        threads=definition.threads,
        compiled=tuple(d.name for d in loop.dtypes) if loop else None,
        contract=_contract(definition),
        example=_example(definition, structs, outputs),
    )
    name, text = name_of(definition, exporting), site.text()
    private = _root(definition).private_name
    of_this_process = text.startswith("#") or (private is not None and name.startswith(private))
    owner = (definition, site) if of_this_process else None
    return name, text, owner


def _contract(definition: Definition) -> dict[str, str]:
    """What was declared of a function, as far as programs depend on it, in words for errors.

    A program that was made under another contract is refused: it would call the function with what
    it does not expect. How many threads help is no part of it, since results do not depend on it.
    """
    root = _root(definition)
    role: Any = root.role
    parameters, ufunc = root.calling, ufunc_of(root.function)
    operands = [*parameters.operands, *["*"] * parameters.variadic]
    static = [*sorted(parameters.static), *["**"] * parameters.any_static]
    told = {
        "signature": getattr(role.shapes, "signature", None),
        "ufunc": ufunc and ufunc.__name__,
        "operands": None if ufunc else ", ".join(operands),  # SciPy may rename its own
        "static parameters": ", ".join(static),
        "results": role.shapes.told(),
        "vectorized=": root.vectorized,
        "compute_dtype=": root.compute_dtype and root.compute_dtype.name,
        "order=": root.order if root.order != "C" else None,
        "linear=": role.linear if role.linear is True else sorted(role.linear or ()),
        "multilinear=": sorted(role.multilinear),
        "nondiff=": sorted(role.nondiff),
        "aliases=": dict(root.aliases),
        "effect=": root.effect,
        "allow_jax=": root.allow_jax,
    }
    return {what: str(value) for what, value in told.items() if value}


def _example(definition: Definition, structs: Sequence[Any], outputs: Outputs) -> tuple | None:
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


def _root(definition: Definition) -> Definition:
    """The function that a derivative belongs to."""
    while definition.parent is not None:
        definition = definition.parent
    return definition


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
        name = _root(definition).given_name
        if name is not None:
            why += f" (another one was bound under the name {name!r} since)"
        remedy = "Bind it at the top of a module (where its name is that of the binding or its own)"
        remedy += ", or give bind(name=...) a name under which the other process binds it, too"
    raise ValueError(f"{label} cannot be exported: its call needs {why}. {remedy}")


def announce(definition: Definition) -> None:
    """Let programs of other processes find a definition by the name that it was given."""
    if definition.given_name:
        _given[definition.given_name] = definition


def is_stable(definition: Definition) -> bool:
    """Whether its name means the same in other processes."""
    return _stable_name(_root(definition)) is not None


def _stable_name(root: Definition) -> str | None:
    if root.given_name is not None:  # the last one bound under a name has it
        return root.given_name if _given.get(root.given_name) is root else None
    name = importable_name(root)  # which another function may have been given
    return name if name is None or _given.get(name, root) is root else None


def _differing(dtypes: Any, structs: Any) -> tuple[str | None, ...]:
    return tuple(
        None if d == s.dtype else np.dtype(d).name for d, s in zip(dtypes, structs, strict=True)
    )


def name_of(definition: Definition, exporting: bool) -> str:
    """The name of a definition in programs; derivatives are reached through their parent.

    A name that means the same in other processes belongs, in programs of this one, to the first
    definition that is called under it, for as long as that lives; others get names of their own
    here, so that between lowering and compiling nobody else can take it. Programs that are exported
    say so by a mark in front, and call whatever has the name where they are loaded.
    """
    if definition.step is not None:
        return f"{name_of(definition.parent, exporting)}{STEP}{definition.step}"
    name = _stable_name(definition)
    if name is not None and exporting:
        return STEP + name
    if name is None or not _takes(name, definition):
        if definition.private_name is None:
            label = definition.label.replace(STEP, "?")
            definition.private_name = f"{label}<{_PROCESS}-{_number()}>"
        name = definition.private_name
        _definitions[name] = definition
    return name


def _takes(name: str, definition: Definition) -> bool:
    """Give a name to the first that wants it; whether ``definition`` has it."""
    with _counting:
        return _definitions.setdefault(name, definition) is definition


def importable_name(definition: Definition) -> str | None:
    """``module:path`` if importing that gives this very definition.

    The path is the function's own, or, for what has none (a ufunc, a kernel, a lambda), the name
    that the module which binds it gives to the binding.
    """
    module, qualname = definition.module, definition.qualname
    if module and qualname and not {"<", STEP} & set(qualname):
        if _loaded(f"{module}:{qualname}") is definition:
            return f"{module}:{qualname}"
    home = sys.modules.get(definition.home)
    if home is not None and definition.parent is None:
        for name, value in list(vars(home).items()):
            if type(value) in _bindings and _definition_of(value) is definition:
                return f"{definition.home}:{name}"
    return None


def names_bindings(cls: type[T]) -> type[T]:
    """Class decorator: instances at the top of a module give their definition its name."""
    _bindings.add(cls)
    return cls


# Reading ----------------------------------------------------------------------------------------


def resolve(name: str) -> Definition:
    """The live definition of a name, imported if need be.

    For an exported program that is the one bound under the name now, not one that has been called
    under it before: it calls what a module defines after it was reloaded.

    Raises:
      LookupError: saying what is missing.
    """
    root, *steps = name.removeprefix(STEP).split(STEP)
    lowered_here = None if name.startswith(STEP) else _definitions.get(root)
    definition: Any = lowered_here or _given.get(root) or _loaded(root) or _import(root)
    for step in steps:
        definition = definition.derivative(step)
        if definition is None:
            raise LookupError(f"{root}: the function is there, but its derivative {step!r} is not")
    return definition


def _loaded(name: str) -> Definition | None:
    """The definition that an importable name has in this process, without importing anything."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module) if path else None
    for part in path.split("."):
        found = getattr(found, part, None)
    return _definition_of(found)


def _import(name: str) -> Definition:
    module, _, path = name.partition(":")
    if not path and "<" not in name:
        raise LookupError(
            f"nothing is bound under the name {name} in this process: import the module that calls"
            f" bind(name={name!r}) first"
        )
    if "<" in name:
        raise LookupError(
            f"{name} lived only in the process that compiled the program: it is no module-level"
            " function. Define it in an importable module, or give bind(name=...)"
        )
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the module raises
        raise LookupError(
            f"module {module}, which should define {path}, fails: {type(error).__name__}: {error}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise LookupError(f"module {module} has no {path}")
        found = getattr(found, part)
    definition = _definition_of(found)
    if definition is None:
        raise LookupError(f"{name} is no binding any more but a {type(found).__name__}")
    return definition


def _definition_of(value: Any) -> Any:
    """The definition behind a binding; ``None`` for anything else."""
    definition = getattr(value, "definition", None)
    return definition if hasattr(type(definition), "ever_traced") else None


def find_binding(name: str) -> Any:
    """The importable binding of that name, for unpickling.

    Raises:
      LookupError: if this process has none.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the module raises
        raise LookupError(
            f"cannot unpickle the binding {name}: it is pickled by its name, as functions are, and"
            f" here {type(error).__name__}: {error}. Define it in a module that both processes can"
            " import, not in a script or a notebook"
        ) from error
    return found


def open_site(name: str, text: str) -> Any:
    """Called by XLA when it instantiates a call site: the object that executes its calls."""
    definition = resolve(name)
    site = _open(definition, name.removeprefix(STEP), text)
    if definition.effect == "ordered":
        site.take_tokens()
    return site


def _open(definition: Definition, name: str, text: str) -> Any:
    if definition.function is None:
        raise LookupError(f"{name} has no function")
    site = Site.parse(text)
    log.debug("%s: XLA makes a call site (%s)", name, text)
    _refuse_another_contract(name, site.contract, _contract(definition))
    _refuse_another_example(name, definition, site)
    names = [definition.operand_name(site.tree, i) for i in range(site.tree.num_leaves)]
    if site.compiled is not None:
        loop = definition.compiled and definition.compiled.loop_of(
            list(map(np.dtype, site.compiled))
        )
        if not loop:
            raise LookupError(
                f"{name} has no compiled loop for {', '.join(site.compiled)} any more"
            )
        loops = 0 if isinstance(loop, Handler) and site.vectorized else site.loop
        results, static = sum(site.kept), site.static.values
        return loop.site(definition.label, names, results, loops, site.threads, static)
    parameters = definition.parameters
    if definition.parent is not None:
        parameters = parameters.behind(len(site.tree.children()))
    keywords = parameters.accepted(site.static.values)
    if parameters.wants_wrt:
        keywords["wrt"] = Wrt.named(definition.parent, site.wanted)
    if getattr(definition.function, "takes_loop", False):
        keywords["loop"] = site.loop if site.vectorized else 0
    return _pycall.CallSite(
        function=parameters.by_keyword_out(definition.function),
        label=definition.label,
        names=names,
        keywords=keywords,
        wants_out=parameters.wants_out,
        loop=site.loop,
        vectorized=site.vectorized,
        fortran=definition.order == "F",
        tree=site.tree,
        result=site.result,
        unwrap=definition.role.bare,
        rule=definition.parent is not None,
        kept=site.kept,
        seen=[None if d is None else np.dtype(d) for d in site.seen],
        declared=[None if d is None else np.dtype(d) for d in site.declared],
        threads=site.threads,
        guard=() if definition.allow_jax else _jax.GUARD,
        make_plan=definition.make_plan and partial(_plan, definition, site),
        once=definition.effect is not None,
        cotangents=definition.role.gives_cotangents,
    )


def _refuse_another_contract(name: str, then: dict[str, str], now: dict[str, str]) -> None:
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


def _refuse_another_example(name: str, definition: Definition, site: Site) -> None:
    """Ask a function in ``out=`` again about the operands of a program; raises as above."""
    if site.example is None:
        return
    x64, given, made = site.example
    structs = [jax.ShapeDtypeStruct(*written) for written in given]
    with jax.enable_x64(x64):
        outputs = definition.outputs(Call(definition, site.static, site.tree), structs)
        again = _example(definition, structs, outputs)
    now = again[2] if again else None
    if now != made:
        _refuse_another_contract(name, {"results": str(made)}, {"results": str(now)})


def _plan(definition: Definition, site: Site, core: list[tuple]) -> Any:
    """The object of ``def_plan`` for a call site with these core shapes and dtypes."""
    structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in core]
    make: Any = definition.make_plan
    parameters = Parameters.of(make).behind(len(site.tree.children()))
    accepted = parameters.accepted(site.static.values)
    return make(*tree_unflatten(site.tree, structs), **accepted)


def register_target() -> str:
    """Register the handler with XLA; returns the target's name."""
    name = "jaxbind"
    handlers: Any = _sites.capsules(open_site)
    jax.ffi.register_ffi_type(name, handlers["state"], platform="cpu")
    jax.ffi.register_ffi_target(name, handlers["target"], platform="cpu")
    _exit.prepare()
    return name
