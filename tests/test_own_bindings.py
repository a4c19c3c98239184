"""Every binding in `examples/`, `contrib/` and the documentation obeys the laws."""

import sys
from pathlib import Path

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp
from test_documentation import BLOCK, PAGES

import jaxbind
from jaxbind import testing
from jaxbind.contrib import jaxducc0
from jaxbind.testing._subject import Subject

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
x64 = jax.config.jax_enable_x64
try:
    import bessel_fit
    import c_library
    import find_the_bug
    import numba_stencil
    import quickstart

    try:
        import geomagnetic_field
    except SystemExit:  # it needs data that the tests do not install
        geomagnetic_field = None
    try:
        import fortran_routine
    except SystemExit:  # there is no gfortran
        fortran_routine = None
finally:
    jax.config.update("jax_enable_x64", x64)
    sys.path.remove(str(EXAMPLES))

NUMBERS = st.floats(-10, 10, allow_subnormal=False).map(lambda x: round(x, 6))


def arrays(*shapes, dtype=float):
    """Tuples of arrays of these shapes."""
    elements = NUMBERS if dtype is float else st.builds(complex, NUMBERS, NUMBERS)
    return st.tuples(*[hnp.arrays(dtype, shape, elements=elements) for shape in shapes])


def telescope():
    """A response as radio astronomers use it, with its positions and frequencies."""
    return jaxducc0.get_wgridder(
        pixsize_x=1e-3, pixsize_y=2e-3, npix_x=8, npix_y=10, epsilon=1e-9, do_wgridding=True
    )


uvw = np.random.default_rng(0).uniform(-50, 50, (5, 3))
freq = np.array([1e9, 1.2e9])

BINDINGS = [
    quickstart.f,
    (
        quickstart.upsample,
        {"inputs": arrays(3), "static": [{"factor": 1}, {"factor": 3}]},
    ),
    (
        quickstart.jv,
        {"elements": {"x1": st.integers(0, 5).map(float), "x2": st.floats(0.5, 20)}},
    ),
    (find_the_bug.bind_fft(np.fft.fft), {}),
    (jaxducc0.c2c, {"inputs": arrays((4, 3), dtype=complex), "static": {"axes": (0,)}}),
    (jaxducc0.genuine_fht, {"inputs": arrays((4, 3)), "static": {"axes": (1,)}}),
    (jaxducc0.get_healpix_sht(2, 3, 3, 0), {"inputs": arrays((1, 16))}),
    (
        telescope(),
        # a gridder answers to the accuracy that it was asked for, in single precision to less
        {
            "inputs": st.tuples(
                st.just(uvw), st.just(freq), *[hnp.arrays(float, (8, 10), elements=NUMBERS)]
            ),
            "rtol": 1e-7,
            "skip": ["dtypes"],
        },
    ),
]
BINDINGS += [
    (
        bessel_fit.jv,
        {"elements": {"x1": st.integers(0, 5).map(float), "x2": st.floats(0.5, 20)}},
    ),
    (
        c_library.anomaly,
        {"elements": {"x1": st.floats(-3, 3), "x2": st.floats(0.05, 0.7)}, "dtypes": float},
    ),
    (
        c_library.velocity,
        {
            "elements": {
                "times": NUMBERS,
                "period": st.floats(20, 40),
                "e": st.floats(0.05, 0.7),
                "K": st.floats(1, 9),
            },
            "dtypes": float,
        },
    ),
    (numba_stencil.flux, {"dtypes": float}),
    (numba_stencil.adjoint, {"dtypes": float}),
]
if fortran_routine is not None:
    dominant = {"diagonal": st.floats(5, 9), "lower": st.floats(-2, 2), "upper": st.floats(-2, 2)}
    # it is not defined for vectors without elements
    vectors = st.integers(1, 4).flatmap(
        lambda n: st.tuples(
            *[
                hnp.arrays(float, n, elements=dominant.get(name, NUMBERS))
                for name in ("lower", "diagonal", "upper", "r")
            ]
        )
    )
    BINDINGS.append((fortran_routine.solve, {"inputs": vectors, "dtypes": float}))
if geomagnetic_field is not None:
    static = {"lmax": 4, "nlat": 6, "nlon": 10}
    BINDINGS.append((geomagnetic_field.synthesis, {"inputs": arrays(24), "static": static}))


@testing.parametrize(*BINDINGS[::3], max_examples=12)
def test_laws(law):
    law()


@pytest.mark.slow
@testing.parametrize(*BINDINGS[1::3], *BINDINGS[2::3], max_examples=12)
def test_laws_of_others(law):
    law()


def documented(page):
    """The bindings with a signature that a page defines, after all of its code has run."""
    namespace = {"__name__": "documentation"}
    text = page.read_text()
    for match in BLOCK.finditer(text):
        if "no-run" not in match["flags"]:
            exec(compile(match["code"], str(page), "exec"), namespace)
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, jaxbind.Binding) and Subject.of(value).signature is not None
    }


def drawn(low, high, shape=()):
    return hnp.arrays(float, shape, elements=st.floats(low, high))


#: what is to be known about the operands of the pages' bindings
KEYWORDS = {
    ("binding.md", "smooth"): {"static": [{"width": 3.0}, {"width": 0.5}]},
    ("index.md", "diffuse"): {"inputs": st.tuples(drawn(0, 5), drawn(-3, 3, 6))},
    ("migrating.md", "solve"): {
        "inputs": st.tuples(drawn(3, 5, 4), drawn(-1, 1, 3), drawn(-3, 3, 4))
    },
}
#: bindings that are wrong on purpose: all of the page on errors, and the introduction to the laws
ERRORS = "errors.md"
WRONG = {("README.md", "fft")}


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p.name != ERRORS], ids=lambda p: p.name)
def test_laws_of_documented_bindings(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x64 = jax.config.jax_enable_x64
    try:
        bindings = documented(page)
    finally:
        jax.config.update("jax_enable_x64", x64)
    broken = {}
    for name, binding in bindings.items():
        if (page.name, name) in WRONG:
            continue
        found = testing.report(
            binding, max_examples=8, seed=0, **KEYWORDS.get((page.name, name), {})
        )
        if not found.ok:
            broken[name] = str(found.violations[0])
    assert not broken, "\n\n".join(broken.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "example",
    [e for e in (bessel_fit, c_library, fortran_routine, numba_stencil) if e is not None],
    ids=lambda e: e.__name__,
)
def test_examples_of_compiled_functions(example, x64):
    example.main()
