"""The user's embedding model, called once for all texts of a batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, cast

from langchain_core.embeddings import Embeddings
from langgraph.store.base import ensure_embeddings
from langgraph.store.base.embed import EmbeddingsLambda

from haive_persistence.db.batching import gather_limited
from haive_persistence.errors import ConfigError, InvalidInputError

#: Calls of the model for one batch at once: it has none for several queries.
MODEL_CALLS_AT_ONCE = 16

#: Vectors by text: of texts to store, and of texts to search for.
Vectors = tuple[dict[str, Sequence[float]], dict[str, Sequence[float]]]


class Embedder:
    """The user's embedding model: blocking and asynchronous, one call for all texts of a batch."""

    def __init__(self, embed: Any) -> None:
        if not isinstance(embed, str | Embeddings | None) and not callable(embed):
            raise ConfigError(
                f"index['embed'] is a {type(embed).__name__}: give a LangChain Embeddings, a function, or a "
                'name such as "openai:text-embedding-3-small"'
            )
        try:
            self.embeddings = ensure_embeddings(cast(Any, embed))
        except ValueError as error:
            raise ConfigError(f"index['embed']: {error}") from error
        # A function has one form for texts stored and searched for, a model may have two.
        self._uniform = isinstance(self.embeddings, EmbeddingsLambda)

    def blocking(self, texts: Sequence[str], queries: Sequence[str]) -> Vectors:
        if self._uniform and not hasattr(self.embeddings, "func"):
            raise ConfigError(
                "index['embed'] is an async function, which only the async methods (aput, asearch, …) can "
                "call; pass a LangChain Embeddings or a plain function to use the blocking ones"
            )
        if self._uniform:
            return self._split(texts, queries, self.embeddings.embed_documents([*texts, *queries]))
        found = self.embeddings.embed_documents(list(texts)) if texts else []
        if len(queries) < 2:
            return self._split(texts, queries, [*found, *map(self.embeddings.embed_query, queries)])
        with ThreadPoolExecutor(min(len(queries), MODEL_CALLS_AT_ONCE)) as pool:
            return self._split(texts, queries, [*found, *pool.map(self.embeddings.embed_query, queries)])

    async def asynchronous(self, texts: Sequence[str], queries: Sequence[str]) -> Vectors:
        if self._uniform:
            return self._split(texts, queries, await self.embeddings.aembed_documents([*texts, *queries]))

        async def documents() -> Sequence[Sequence[float]]:
            return await self.embeddings.aembed_documents(list(texts)) if texts else []

        async def query(text: str) -> Sequence[Sequence[float]]:
            return [await self.embeddings.aembed_query(text)]

        calls: list[Callable[[], Awaitable[Sequence[Sequence[float]]]]] = [documents]
        calls += [partial(query, text) for text in queries]
        found = await gather_limited(calls, most=MODEL_CALLS_AT_ONCE)
        return self._split(texts, queries, list(chain.from_iterable(found)))

    @staticmethod
    def _split(texts: Sequence[str], queries: Sequence[str], vectors: Sequence[Sequence[float]]) -> Vectors:
        if len(vectors) != len(texts) + len(queries):
            raise InvalidInputError(
                f"the embedder returned {len(vectors)} vectors for {len(texts) + len(queries)} texts"
            )
        return dict(zip(texts, vectors, strict=False)), dict(zip(queries, vectors[len(texts) :], strict=True))
