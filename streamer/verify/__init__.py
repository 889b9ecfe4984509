"""Are source and target equal? Rows are compared by hashes, in parts of a table, while both sides are written.

`pairs.py` says which tables are compared and how each side is read, `comparison.py` compares one table, `candidates.py` decides
which of the differences are real, `passing.py` knows when the stream has passed a moment.
"""
