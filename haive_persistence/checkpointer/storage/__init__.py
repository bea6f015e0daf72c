"""Values to rows and back. Pure: bytes and numbers, no database.

manifest.py       the description of a value by the pieces it is made of
encoder.py        values to manifests and pieces
decoder.py        manifests and pieces to values
copies.py         decoded values that are handed out as copies
messages.py       messages, recognised by their contents
row_format.py     what a checkpoint's and a write's row hold
piece_numbers.py  the numbers of pieces
piece_index.py    what this process knows of one thread's pieces
piece_cache.py    the indexes of the threads used last
"""
