"""Everything here is for other Cython modules."""
