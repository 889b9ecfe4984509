# The types in C of pgoutput.py (see streamer/compiled.py).
cimport cython

cdef bint _IN_C
cdef int _B, _C, _D, _I, _R, _T, _U, _KEY, _OLD, _NEW, _NULL, _TEXT, _TOAST

cdef class PgoutputDecoder:
    cdef object _roots, _generated, _names
    cdef dict _narrowed, _relations, _described, _versions

    @cython.locals(kind=int, change=tuple)
    cpdef decode(self, bytes data)
    @cython.locals(new=tuple, end=Py_ssize_t)
    cdef tuple _insert(self, bytes data)
    @cython.locals(new=tuple, end=Py_ssize_t, tag=int)
    cdef tuple _update(self, bytes data)
    @cython.locals(end=Py_ssize_t)
    cdef tuple _delete(self, bytes data)

@cython.locals(count=Py_ssize_t, kind=int, start=Py_ssize_t, size=Py_ssize_t, values=list)
cdef tuple _row(bytes data, Py_ssize_t pos, relation)
@cython.locals(number=Py_ssize_t)
cdef Py_ssize_t _number(bytes data, Py_ssize_t pos) except -1
cdef _expect(bytes data, Py_ssize_t pos, int tag)
cdef _ends(bytes data, Py_ssize_t pos)
