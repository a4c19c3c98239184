"""Where the compiled modules are.

Python puts the current folder in front of what is installed (``python -m pytest`` in a clone,
``python -c``), and a clone has no compiled modules. Those of the installed package serve, if
it is the same version.
"""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def _has_modules(folder: Path) -> bool:
    return any((folder / f"_pycall{suffix}").exists() for suffix in EXTENSION_SUFFIXES)


def folder(package: str, version_file: str) -> str | None:
    """The folder of the installed package, or ``None`` if ``package`` is complete itself.

    Raises:
      ImportError: if there are no compiled modules of this version.
    """
    here = Path(package).resolve()
    if _has_modules(here):
        return None
    for entry in sys.path:
        other = Path(entry or ".").resolve() / here.name
        if other != here and _has_modules(other) and (other / version_file).exists():
            if (other / version_file).read_text() == (here / version_file).read_text():
                return str(other)
    raise ImportError(
        f"jaxbind was imported from {here}, which has no compiled modules: it is the source, not"
        " the installed package. Remedy: 'pip install .' there, or 'pip install -e .' to work on it"
    )
