"""The compiled modules; everything else about the package is in pyproject.toml."""

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

MODULES = [
    "_frame",
    "_sites",
    "_trees",
    "_views",
    "_returns",
    "_pycall",
    "_attributes",
    "_loops",
    "_poison",
]

COMPILER_DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "freethreading_compatible": True,
}

extensions = [
    Extension(
        f"jaxbind.{name}",
        [f"jaxbind/{name}.pyx"],
        include_dirs=["jaxbind", numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=["-O3"],
    )
    for name in MODULES
]

# force: the C that Cython writes depends on the NumPy it was made with
setup(ext_modules=cythonize(extensions, compiler_directives=COMPILER_DIRECTIVES, force=True))
