cimport cython

cdef class Assembler:
    cdef object _node, _interest, _known, _seen, _begin, _transaction
    cdef bint _hears
    cdef public bint passing
    cdef Py_ssize_t _column_bytes, _size
    cdef list _changes
    cdef dict _row_bytes
    @cython.locals(row_bytes=object)
    cpdef feed(self, message, Py_ssize_t size)
    cdef _control(self, message, Py_ssize_t size)
    @cython.locals(relation=object)
    cdef _enter(self, tuple change)
    cdef _local(self, begin)
    cdef _cut(self, end)
    cdef _close(self, end)
