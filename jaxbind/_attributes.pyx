"""Attributes of a call, as XLA hands them to handlers."""

from libc.stdlib cimport calloc, free

from jaxbind import _dtypes

from jaxbind._abi cimport (
    JB_Array,
    JB_Attrs,
    JB_AttrType,
    JB_AttrType_ARRAY,
    JB_AttrType_SCALAR,
    JB_AttrType_STRING,
    JB_ByteSpan,
    JB_DataType,
    JB_Scalar,
)


cdef class Attributes:
    def __cinit__(self, dict values):
        cdef int i, n = len(values)
        cdef bytes raw
        self.kept = []
        self.types = <JB_AttrType*>calloc(n + 1, sizeof(JB_AttrType))
        self.names = <JB_ByteSpan**>calloc(n + 1, sizeof(JB_ByteSpan*))
        self.values = <void**>calloc(n + 1, sizeof(void*))
        self.texts = <JB_ByteSpan*>calloc(2 * n + 1, sizeof(JB_ByteSpan))
        self.scalars = <JB_Scalar*>calloc(n + 1, sizeof(JB_Scalar))
        self.arrays = <JB_Array*>calloc(n + 1, sizeof(JB_Array))
        if not (
            self.types and self.names and self.values and self.texts and self.scalars
            and self.arrays
        ):
            raise MemoryError
        for i, name in enumerate(sorted(values)):
            value = values[name]
            raw = name.encode()
            self.kept.append(raw)
            self.texts[2 * i].ptr, self.texts[2 * i].len = <char*>raw, len(raw)
            self.names[i] = &self.texts[2 * i]
            raw = value.encode() if isinstance(value, str) else value.tobytes()
            self.kept.append(raw)
            if isinstance(value, str):
                self.types[i] = JB_AttrType_STRING
                self.texts[2 * i + 1].ptr, self.texts[2 * i + 1].len = <char*>raw, len(raw)
                self.values[i] = &self.texts[2 * i + 1]
            elif value.ndim:
                self.types[i] = JB_AttrType_ARRAY
                self.arrays[i].dtype = <JB_DataType><int>_dtypes.CODE_OF[value.dtype]
                self.arrays[i].size, self.arrays[i].data = value.size, <char*>raw
                self.values[i] = &self.arrays[i]
            else:
                self.types[i] = JB_AttrType_SCALAR
                self.scalars[i].dtype = <JB_DataType><int>_dtypes.CODE_OF[value.dtype]
                self.scalars[i].value = <char*>raw
                self.values[i] = &self.scalars[i]
        self.described.struct_size = sizeof(JB_Attrs)
        self.described.extension_start = NULL
        self.described.size = n
        self.described.types = self.types
        self.described.names = self.names
        self.described.attrs = self.values

    def __dealloc__(self):
        free(self.types)
        free(self.names)
        free(self.values)
        free(self.texts)
        free(self.scalars)
        free(self.arrays)
