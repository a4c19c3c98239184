"""Sphinx builds these pages with: sphinx-build -W -b html docs OUTPUT"""

from importlib.util import find_spec

import jaxbind

project = "jaxbind"
author = "The jaxbind developers"
release = jaxbind.__version__
html_title = f"jaxbind {release}"
html_theme = "furo"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

# `name` in a docstring is a Python object, with a link where this documentation has it
default_role = "py:obj"
# types stand in the text of the docstrings; the annotations are for type checkers
autodoc_typehints = "none"
autodoc_mock_imports = [] if find_spec("ducc0") else ["ducc0"]


def no_constructor(app, what, name, obj, options, signature, return_annotation):
    """Bindings are made by `bind`."""
    if name == "jaxbind.Binding":
        return "", None
    return None


def setup(app):
    app.connect("autodoc-process-signature", no_constructor)
