cdef enum Shape:
    SINGLE  # one leaf
    FLAT    # a tuple of leaves
    NESTED  # anything else


cdef class Tree:
    """How the pytree of a function's operands, or of its results, is put together."""

    cdef object treedef
    cdef object template  # nested tuples, lists and dicts of leaf numbers; None if others are in it
    cdef Shape shape

    cdef object build(self, list leaves)
