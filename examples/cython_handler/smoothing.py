"""Bindings of the handlers in ``_smoothing.pyx``, with their derivatives."""

import _smoothing
import numpy as np

import jaxbind

smooth = jaxbind.bind(
    jaxbind.Handler(
        _smoothing.smooth_handler,
        ["x"],
        attributes={"alpha": np.float64, "backwards": np.int64},
    ),
    "(n)->(n)",
    linear=True,
    name="smooth",
)


@smooth.def_transpose(traced=True)
def _(cotangent, *, alpha, backwards):
    """Smoothing in the other direction of time."""
    return smooth(cotangent, alpha=alpha, backwards=not backwards)


centre = jaxbind.bind(
    jaxbind.Handler(_smoothing.centre_handler, ["x"]), "(m,n)->(m,n)", linear=True, name="centre"
)
centre.def_transpose(lambda cotangent: centre(cotangent), traced=True)  # it is symmetric
