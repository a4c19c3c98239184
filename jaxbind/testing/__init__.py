"""Is what you declared about a binding true?  Property tests, with Hypothesis.

``testing.check(f)`` tries every law; `laws` has them one by one.
"""

from jaxbind.testing import laws
from jaxbind.testing._check import check, using
from jaxbind.testing._inputs import inputs
from jaxbind.testing._violation import LawViolation

__all__ = ["LawViolation", "check", "inputs", "laws", "using"]
