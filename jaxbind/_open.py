"""Making the call site that XLA owns, from a name and a site in a program."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.tree_util import tree_unflatten

from jaxbind import _cuda, _exit, _jax, _pycall, _sites
from jaxbind._call import Call
from jaxbind._contract import contract_of, refuse_another_contract, refuse_another_example
from jaxbind._errors import log
from jaxbind._handler import Handler
from jaxbind._identity import STEP, resolve
from jaxbind._parameters import Parameters
from jaxbind._site import Site
from jaxbind._wrt import Wrt

if TYPE_CHECKING:
    from jaxbind._definition import Definition


def open_site(name: str, text: str) -> Any:
    """Called by XLA when it instantiates a call site: the object that executes its calls."""
    definition = resolve(name)
    site = _open(definition, name.removeprefix(STEP), text)
    if definition.options.effect == "ordered":
        site.take_tokens()
    return site


def _open(definition: Definition, name: str, text: str) -> Any:
    if definition.function is None:
        raise LookupError(f"{name} has no function")
    site = Site.parse(text)
    log.debug("%s: XLA makes a call site (%s)", name, text)
    refuse_another_contract(name, site.contract, contract_of(definition))
    refuse_another_example(name, Call(definition, site.static, site.tree), site.example)
    names = [definition.operand_name(site.tree, i) for i in range(site.tree.num_leaves)]
    if site.compiled is not None:
        compiled = definition.options.compiled
        loop = compiled and compiled.loop_of(list(map(np.dtype, site.compiled)))
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
        fortran=definition.options.order == "F",
        tree=site.tree,
        result=site.result,
        unwrap=definition.role.bare,
        rule=definition.parent is not None,
        kept=site.kept,
        seen=[None if d is None else np.dtype(d) for d in site.seen],
        declared=[None if d is None else np.dtype(d) for d in site.declared],
        threads=site.threads,
        guard=() if definition.options.allow_jax else _jax.GUARD,
        make_plan=definition.make_plan and partial(_plan, definition, site),
        once=definition.options.effect is not None,
        cotangents=definition.role.gives_cotangents,
    )


def _plan(definition: Definition, site: Site, core: list[tuple]) -> Any:
    """The object of ``def_plan`` for a call site with these core shapes and dtypes."""
    structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in core]
    make: Any = definition.make_plan
    parameters = Parameters.of(make).behind(len(site.tree.children()))
    accepted = parameters.accepted(site.static.values)
    return make(*tree_unflatten(site.tree, structs), **accepted)


def register_target() -> str:
    """Register the handlers with XLA; returns the target's name."""
    name = "jaxbind"
    handlers: Any = _sites.capsules(open_site, _cuda.load)
    for platform, made in handlers.items():
        jax.ffi.register_ffi_type(name, made["state"], platform=platform)
        jax.ffi.register_ffi_target(name, made["target"], platform=platform)
    _exit.prepare()
    return name
