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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from weakref import WeakValueDictionary

import jax
import numpy as np
from jax.tree_util import tree_structure, tree_unflatten

from jaxbind import _exit, _jax, _pycall, _sites
from jaxbind._call import Call, PyTreeDef
from jaxbind._derivatives import Pushforward
from jaxbind._errors import log, short_repr
from jaxbind._handler import Handler
from jaxbind._parameters import Parameters
from jaxbind._static import Static
from jaxbind._ufuncs import ufunc_of
from jaxbind._wrt import Wrt

if TYPE_CHECKING:
    from jaxbind._definition import Definition

T = TypeVar("T")

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


@dataclass(frozen=True, eq=False)
class Site:
    """How one call site calls its function.

    Attributes:
      loop: the number of loop dimensions.
      vectorized: whether the function takes them itself.
      static: the static parameters.
      tree: the structure of the positional arguments.
      wanted: for a pullback or a transpose, for which arguments of the parent.
      result: the structure of what the function returns.
      kept: which leaves of it are results of the call.
      seen: the dtype in which the function sees each operand, where it differs.
      declared: the dtype in which it gives each result, where it differs.
      threads: how many the loop dimensions are spread over.
      compiled: the dtypes of the compiled loop, if there is one.
      contract: the signature that was declared when the program was made.
    """

    loop: int
    vectorized: bool
    static: Static
    tree: PyTreeDef
    wanted: tuple[bool, ...]
    result: PyTreeDef
    kept: tuple[bool, ...]
    seen: tuple[str | None, ...]
    declared: tuple[str | None, ...]
    threads: int = 1
    compiled: tuple[str, ...] | None = None
    contract: str = ""

    def text(self) -> str:
        """The canonical text, or a token of this process where there is none."""
        static, tree, result = self.static.literal(), _literal(self.tree), _literal(self.result)
        if static is None or tree is None or result is None:
            token = f"#{_PROCESS}-{_number()}"
            _unwritten[token] = self
            return token
        rest = (
            self.loop,
            self.vectorized,
            self.wanted,
            self.kept,
            self.seen,
            self.declared,
            self.threads,
            self.compiled,
            self.contract,
        )
        return f"({static}, {tree}, {result}, {rest!r})"

    @classmethod
    def parse(cls, text: str) -> Site:
        if text.startswith("#"):
            site = _unwritten.get(text)
            if site is None:
                raise LookupError(
                    "the program was compiled with a static parameter or an argument structure"
                    " that cannot be written down, by a process that is gone"
                )
            return site
        static, tree, result, rest = ast.literal_eval(text)
        loop, vectorized, wanted, kept, seen, declared, threads, compiled, contract = rest
        return cls(
            loop,
            vectorized,
            Static(dict(static)),
            tree_structure(tree),
            wanted,
            tree_structure(result),
            kept,
            seen,
            declared,
            threads,
            compiled,
            contract,
        )

    def unwritten(self) -> str:
        """What of it has no canonical text."""
        for name, value in self.static.values.items():
            if Static({name: value}).literal() is None:
                return f"the static parameter {name}={short_repr(value)}, which is no literal"
        return "an argument or result of a structure that is no tuple, list or dict"


@lru_cache(maxsize=4096)
def _literal(tree: PyTreeDef) -> str | None:
    text = repr(tree_unflatten(tree, [0] * tree.num_leaves))
    try:
        return text if tree_structure(ast.literal_eval(text)) == tree else None
    except (ValueError, SyntaxError):
        return None


# Writing ----------------------------------------------------------------------------------------


def describe(call: Call, structs: list[jax.ShapeDtypeStruct]) -> tuple[str, str, Any]:
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
    site = Site(
        call.loop,
        definition.vectorized and not (call.loop and definition.role.lacks(call, structs)),
        call.static,
        call.tree,
        definition.role.wanted(call),
        outputs.tree,
        outputs.kept,
        _differing(seen, structs),
        _differing(outputs.declared, outputs.structs),
        definition.threads,
        tuple(d.name for d in loop.dtypes) if loop else None,
        _contract(definition),
    )
    name, text = name_of(definition), site.text()
    owner = None if is_stable(definition) and not text.startswith("#") else (definition, site)
    return name, text, owner


def _contract(definition: Definition) -> str:
    root = _root(definition)
    role: Any = root.role
    order = f" order={root.order}" if root.order != "C" else ""
    ufunc = ufunc_of(root.function)
    named = f" of {ufunc.__name__}" if ufunc is not None else ""
    effect = f" effect={definition.effect}" if definition.effect is not None else ""
    return str(getattr(role.shapes, "signature", None) or "") + named + order + effect


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
    return importable_name(root)


def _differing(dtypes: Any, structs: Any) -> tuple[str | None, ...]:
    return tuple(
        None if d == s.dtype else np.dtype(d).name for d, s in zip(dtypes, structs, strict=True)
    )


def name_of(definition: Definition) -> str:
    """The name of a definition in programs; derivatives are reached through their parent."""
    if definition.step is not None:
        return f"{name_of(definition.parent)}.{definition.step}"
    name = _stable_name(definition)
    if name is None:
        if definition.private_name is None:
            definition.private_name = f"{definition.label}<{_PROCESS}-{_number()}>"
        name = definition.private_name
    _definitions[name] = definition
    return name


def importable_name(definition: Definition) -> str | None:
    """``module:path`` if importing that gives this very definition.

    The path is the function's own, or, for what has none (a ufunc, a kernel, a lambda), the name
    that the module which binds it gives to the binding.
    """
    module, qualname = definition.module, definition.qualname
    if module and qualname and "<" not in qualname:
        found: Any = sys.modules.get(module)
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if _definition_of(found) is definition:
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

    Raises:
      LookupError: saying what is missing.
    """
    definition, steps = _among(_definitions, name)
    if definition is None:
        definition, steps = _among(_given, name)
    if definition is None:
        definition, steps = _import(name)
    for step in reversed(steps):
        definition = definition.derivative(step)
        if definition is None:
            raise LookupError(f"{name}: the function is there, but its derivative {step!r} is not")
    return definition


def _among(known: Mapping[str, Definition], name: str) -> tuple[Any, list[str]]:
    """The definition that ``name`` begins with, and the steps from there, the last one first."""
    root, steps = name, []
    while root not in known and "." in root and not root.endswith(">"):
        root, _, step = root.rpartition(".")
        steps.append(step)
    return known.get(root), steps


def _import(name: str) -> tuple[Any, list[str]]:
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
    except ImportError as error:
        raise LookupError(f"module {module}, which should define {path}, fails: {error}") from None
    parts = path.split(".")
    while parts and _definition_of(found) is None:
        part = parts.pop(0)
        if not hasattr(found, part):
            raise LookupError(f"module {module} has no {path}")
        found = getattr(found, part)
    definition = _definition_of(found)
    if definition is None:
        raise LookupError(f"{name} is no binding any more but a {type(found).__name__}")
    return definition, parts[::-1]


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
    except (ImportError, AttributeError) as error:
        raise LookupError(
            f"cannot unpickle the binding {name}: it is pickled by its name, as functions are, and"
            f" here {error}. Define it in a module that both processes can import, not in a script"
            " or a notebook"
        ) from None
    return found


def open_site(name: str, text: str) -> Any:
    """Called by XLA when it instantiates a call site: the object that executes its calls."""
    definition = resolve(name)
    site = _open(definition, name, text)
    if definition.effect == "ordered":
        site.take_tokens()
    return site


def _open(definition: Definition, name: str, text: str) -> Any:
    if definition.function is None:
        raise LookupError(f"{name} has no function")
    site = Site.parse(text)
    log.debug("%s: XLA makes a call site (%s)", name, text)
    if site.contract != _contract(definition):
        raise LookupError(
            f"the program was made when {name} had the signature {site.contract or '(none)'}; it is"
            f" {_contract(definition) or '(none)'} now. Compile or export the program again"
        )
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
        pushes=isinstance(definition.role, Pushforward),
    )


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
