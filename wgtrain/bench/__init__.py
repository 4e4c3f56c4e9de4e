"""`wgtrain bench`: how fast kernels and whole steps are here, beside this adapter's own ceiling and
beside other trainers doing the same work.

A measurement is a record, plain data that JSON holds; tables, charts and docs/performance.md are
made of records alone. Nothing outside imports this face but the command line, when it is asked to.
"""
