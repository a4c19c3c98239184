"""``pip install --no-build-isolation .`` builds the handler against the installed jaxbind."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import jaxbind

setup(
    name="cython-handler",
    version="1.0",
    py_modules=["smoothing"],
    ext_modules=cythonize(
        [Extension("_smoothing", ["_smoothing.pyx"], include_dirs=[jaxbind.get_include()])],
        language_level=3,
    ),
)
