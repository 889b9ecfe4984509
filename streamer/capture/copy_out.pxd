# The types in C of copy_out.py (see streamer/compiled.py).
cimport cython

cdef int _ROW
cdef Py_ssize_t _HEADER

@cython.locals(view=cython.p_uchar, at=Py_ssize_t, end=Py_ssize_t, after=Py_ssize_t)
cpdef Py_ssize_t cut(bytes data, list rows) except -1
