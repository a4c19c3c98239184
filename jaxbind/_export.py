"""What `jax.export` must be told about our calls."""

from __future__ import annotations

from typing import Any

import jax.export

from jaxbind._primitive import TARGET


def export_checks() -> list[Any]:
    """For ``jax.export.export(f, disabled_checks=jaxbind.export_checks())``.

    JAX exports only custom calls that it knows to be stable. Ours carry a name and static
    parameters in the program: the process that loads it imports the binding by that name.
    """
    return [jax.export.DisabledSafetyCheck.custom_call(TARGET)]
