"""Vectors of texts: the user's model, the settings of `index=`, the tables and the search.

`embedder` calls the model. `config` reads `index=`. `schema` makes the table and the index it needs. `search`
decides which statement finds the nearest vectors of a scope.
"""

from haive_persistence.embedding.config import ANNIndexConfig, PostgresIndexConfig, VectorIndex, read_index
from haive_persistence.embedding.embedder import Vectors
from haive_persistence.embedding.search import LargeScopes, VectorSearch

__all__ = [
    "ANNIndexConfig",
    "LargeScopes",
    "PostgresIndexConfig",
    "VectorIndex",
    "VectorSearch",
    "Vectors",
    "read_index",
]
