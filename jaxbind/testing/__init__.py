"""Is what you declared about a binding true?  Property tests, with Hypothesis.

- `check(f)` tries every law and raises `LawViolation` for the first that is broken;
- `report(f)` tells what came of each, as text, page or picture;
- ``@parametrize(f, g)`` makes a pytest item of each binding and law;
- `inputs(f)` is the Hypothesis strategy of arguments that they use;
- `using(f, ...)` keeps beside a binding how it is to be checked;
- `laws` has each law as a function of concrete arguments;
- ``python -m jaxbind.testing package.module`` does it from the command line.
"""

try:
    import hypothesis  # noqa: F401
except ImportError:
    raise ImportError(
        "jaxbind.testing needs Hypothesis: pip install 'jaxbind[testing]' or pip install hypothesis"
    ) from None

from jaxbind.testing import laws
from jaxbind.testing._check import check
from jaxbind.testing._inputs import inputs
from jaxbind.testing._options import using
from jaxbind.testing._pytest import parametrize
from jaxbind.testing._report import Report, report
from jaxbind.testing._violation import LawViolation

__all__ = [
    "LawViolation",
    "Report",
    "check",
    "inputs",
    "laws",
    "parametrize",
    "report",
    "using",
]
