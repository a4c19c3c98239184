"""Names in compiled programs <-> live functions.

A compiled program carries, for each call site, two strings: the *name* of the definition and the
*site*, which says how it is called (`_site`). When XLA instantiates the call site, both are
resolved to a live function, once, and XLA owns the result (`_open`). So nothing in a program is an
address, and what cannot be written down (a closure, a static parameter that is no literal) gets
a token that is unique to this process: another process can never mistake it for something else.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

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


def token() -> str:
    """Different each time, in this process and in any other."""
    with _counting:  # free-threaded Python may count twice alike
        return f"{_PROCESS}-{next(_count)}"


def root_of(definition: Definition) -> Definition:
    """The function that a derivative belongs to."""
    while definition.parent is not None:
        definition = definition.parent
    return definition


# Writing ----------------------------------------------------------------------------------------


def announce(definition: Definition) -> None:
    """Let programs of other processes find a definition by the name that it was given."""
    if definition.given_name:
        _given[definition.given_name] = definition


def is_stable(definition: Definition) -> bool:
    """Whether its name means the same in other processes."""
    return _stable_name(root_of(definition)) is not None


def _stable_name(root: Definition) -> str | None:
    if root.given_name is not None:  # the last one bound under a name has it
        return root.given_name if _given.get(root.given_name) is root else None
    name = importable_name(root)  # which another function may have been given
    return name if name is None or _given.get(name, root) is root else None


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
            definition.private_name = f"{label}<{token()}>"
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


def path_to(definition: Definition) -> str | None:
    """``module:path`` of what can be imported, also of a derivative: ``module:f.vjp``."""
    path: list[str] = []
    root = definition
    while root.parent is not None:
        path.insert(0, str(root.step).partition("@")[0])  # f.vjp is its latest version
        root = root.parent
    name = importable_name(root)
    found = None if name is None else ".".join([name, *path])
    return found if found is not None and _loaded(found) is definition else None


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
