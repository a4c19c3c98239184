from jaxbind._abi cimport JB_Array, JB_Attrs, JB_AttrType, JB_ByteSpan, JB_Scalar


cdef class Attributes:
    """Attributes of a call as XLA hands them to handlers, sorted by name.

    Each is a name and a string, a NumPy scalar, or an array.
    """

    cdef JB_Attrs described
    cdef list kept
    cdef JB_AttrType* types
    cdef JB_ByteSpan** names
    cdef void** values
    cdef JB_ByteSpan* texts
    cdef JB_Scalar* scalars
    cdef JB_Array* arrays
