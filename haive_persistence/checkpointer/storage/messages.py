"""LangChain's messages, which are recognised by their exact contents. Pure: no database."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import ormsgpack
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)

MESSAGE_CLASSES: frozenset[type] = frozenset(
    {
        AIMessage,
        AIMessageChunk,
        ChatMessage,
        ChatMessageChunk,
        FunctionMessage,
        FunctionMessageChunk,
        HumanMessage,
        HumanMessageChunk,
        RemoveMessage,
        SystemMessage,
        SystemMessageChunk,
        ToolMessage,
        ToolMessageChunk,
    }
)
# Exact for everything msgpack knows by itself; anything else makes packb raise, and the message is
# then compared by its whole serialised form.
_EXACT = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
)


def message_key(message: BaseMessage, *, without_id: bool = False) -> bytes | None:
    """The exact contents of a message's fields, type by type; None if it holds foreign objects.

    `without_id`: as they would be without an id.
    """
    extra = message.__pydantic_extra__
    fields = {**message.__dict__, "id": None} if without_id else message.__dict__
    try:
        return ormsgpack.packb([fields, extra] if extra else fields, option=_EXACT)
    except (TypeError, ValueError):
        return None


def message_keys(messages: Sequence[BaseMessage]) -> list[bytes | None]:
    """`message_key` of each, of messages without extra fields."""
    try:
        return list(map(ormsgpack.packb, map(vars, messages), repeat(None), repeat(_EXACT)))
    except (TypeError, ValueError):
        return list(map(message_key, messages))
