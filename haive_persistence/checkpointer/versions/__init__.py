"""Version control of a thread's state: branches, tags, and the operations on them.

lines.py         what a line of checkpoints is, and what a view of one shows (pure)
names.py         what names mean
views.py         reading through a branch
places.py        the line on which something is put
locate.py        finding the checkpoint that a caller names
ref_records.py   the rows of `ref` and `operation` (pure)
ref_rows.py      reading and changing them in transactions
refs.py          branches and tags: create, list, rename, protect, delete
moves.py         restore and undo: moving what a name means
merging.py       merge, cherry-pick, revert, resolve: on stored threads
ancestry_graph.py  checkpoints, what they were made from, and merge bases (pure)
comparing.py     differences of stored states
side_effects.py  tool calls that nothing takes back (pure)
diff/, merge/    comparing and merging states (pure)
parts.py         the above, made when they are first used
calls.py         the calls of `Checkpointer`; blocking.py, the same blocking
"""
