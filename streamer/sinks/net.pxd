# The types in C of net.py (see streamer/compiled.py).
cimport cython

cdef object _INSERT, _UPDATE, _DELETE, _TRUNCATE

cdef class _Fold:
    cdef object _key_of
    cdef list _steps
    cdef dict _open, _versions

    @cython.locals(change=tuple, opened=dict, inserts=dict, updates=dict)
    cpdef list run(self, changes)
    cdef tuple _enter(self, relation)

cdef _update(dict rows, key, tuple row)
cdef _delete(step, key, tuple old)
