"""Documents: JSON values under namespaces, as rows and back.

`items` ties together `namespaces` (names as text), `values` (JSON as columns) and `filters` (SQL conditions).
"""
