"""Where C and Cython users find ``xla_ffi.h``."""

import os


def get_include() -> str:
    """The directory with ``xla_ffi.h``, for a C compiler's ``-I``."""
    return os.path.dirname(os.path.abspath(__file__))
