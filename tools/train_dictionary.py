"""Trains the zstd dictionary that the codec compresses small values with.

    python tools/train_dictionary.py            # report only
    python tools/train_dictionary.py --write 2  # write dictionary number 2

The samples are what a saver stores: LangChain messages as `SafeSerializer` writes them, with the ids,
usage and response metadata of the common providers, and checkpoint heads, metadata and writes. Their
text is drawn from `dictionary_text.txt`, all of it made up. The report compresses samples that were
held out, with random letters for text: what remains is the gain on the envelope alone. A shipped
dictionary is never changed: write the next number and set `CURRENT_DICTIONARY` to it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import zstandard
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.types import Command, Interrupt, Send

from haive_persistence.codec import Codec
from haive_persistence.codec.compress import CURRENT_DICTIONARY

HERE = Path(__file__).parent
TARGET = HERE.parent / "haive_persistence" / "codec" / "dictionaries"
SIZE = 32 * 1024
LEVEL = 6
SEED = 20250601
CODEC = Codec(compression=None)
Text = Callable[[random.Random, str], str]


# --- text -------------------------------------------------------------------------------------


def read_sections() -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in (HERE / "dictionary_text.txt").read_text().splitlines():
        if line.startswith("## ") and line[3:].isalpha() and line[3:].islower():
            current = sections.setdefault(line[3:], [])
        elif not line.startswith("# ") or current:
            current.append(line)
    return sections


SECTIONS = read_sections()


def written(rng: random.Random, section: str) -> str:
    """A few sentences of one section, as a person or model would put them together."""
    lines = rng.sample(SECTIONS[section], min(rng.choice((1, 1, 2, 3, 5, 8)), len(SECTIONS[section])))
    if section == "assistant" and rng.random() < 0.15:
        lines += rng.sample(SECTIONS["code"], 6)
    return rng.choice((" ", " ", "\n", "\n\n")).join(lines)


def new(rng: random.Random, section: str) -> str:
    """Text whose words are half known, half merely spelled like words.

    Without it the dictionary's code tables would be made for ids, since of the sentences that are
    repeated in the samples no letter is left to code; real text then takes a tenth more.
    """
    count = len(written(rng, section)) // 6 + 1
    return " ".join(rng.choices(*WORDS)[0] if rng.random() < 0.5 else spelled(rng) for _ in range(count))


def written_or_new(rng: random.Random, section: str) -> str:
    return rng.choice((written, new))(rng, section)


def spelled(rng: random.Random) -> str:
    word = "^^"
    while not word.endswith("$") and len(word) < 14:
        word += rng.choices(*FOLLOWING[word[-2:]])[0]
    return word[2:].rstrip("$")


def random_letters(rng: random.Random, section: str) -> str:
    """Text that no dictionary knows."""
    return "".join(rng.choices(string.ascii_letters + string.digits, k=len(written(rng, section))))


def no_text(rng: random.Random, section: str) -> str:
    return ""


def count_words() -> tuple[list[str], list[int]]:
    prose = " ".join(SECTIONS["human"] + SECTIONS["assistant"])
    counts = Counter(re.findall(r"[A-Za-z']+[.,?!]?", prose))
    return list(counts), list(counts.values())


def count_letters() -> dict[str, tuple[list[str], list[int]]]:
    following: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for word, count in zip(*WORDS, strict=True):
        padded = f"^^{word.lower().strip('.,?!')}$"
        for pair, letter in zip(pairwise(padded), padded[2:], strict=False):
            following["".join(pair)][letter] += count
    return {pair: (list(counts), list(counts.values())) for pair, counts in following.items()}


WORDS = count_words()
FOLLOWING = count_letters()


# --- messages ---------------------------------------------------------------------------------

TOOLS = ("search", "get_weather", "web_search", "retriever", "calculator", "run_sql", "read_file")
TOOLS += ("transfer_to_researcher", "send_email", "python_repl", "write_file", "query_database")


def token(rng: random.Random, size: int) -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits, k=size))


def uid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def human(rng: random.Random, text: Text) -> BaseMessage:
    content: Any = text(rng, "human")
    if rng.random() < 0.1:
        image = {"type": "image_url", "image_url": {"url": f"https://www.example.com/{token(rng, 8)}.png"}}
        content = [{"type": "text", "text": content}, image]
    name = rng.choice((None, None, None, None, "user", "researcher"))
    return HumanMessage(content, id=rng.choice((uid(rng), uid(rng), None)), name=name)


def system(rng: random.Random, text: Text) -> BaseMessage:
    return SystemMessage(text(rng, "system"), id=rng.choice((None, uid(rng))))


def tool(rng: random.Random, text: Text) -> BaseMessage:
    return ToolMessage(
        text(rng, "tool"),
        name=rng.choice(TOOLS),
        id=uid(rng),
        tool_call_id=call_id(rng),
        artifact=rng.choice((None, None, None, {"source": "web", "documents": []})),
        status=rng.choice(("success", "success", "success", "error")),
    )


def call_id(rng: random.Random) -> str:
    return rng.choice(
        (f"call_{token(rng, 24)}", f"call_{token(rng, 24)}", f"toolu_01{token(rng, 22)}", uid(rng))
    )


def tool_calls(rng: random.Random, text: Text) -> list[dict[str, Any]]:
    arguments: tuple[dict[str, Any], ...] = (
        {"query": text(rng, "human")},
        {"city": token(rng, 6), "unit": "celsius"},
        {"location": token(rng, 8)},
        {"path": f"/{token(rng, 5)}/{token(rng, 6)}.py", "content": text(rng, "code")},
        {"expression": f"{rng.randint(1, 99)} * {rng.randint(1, 99)}"},
        {"sql": f"SELECT * FROM {token(rng, 6)} LIMIT 10"},
        {},
    )
    return [
        {"name": rng.choice(TOOLS), "args": rng.choice(arguments), "id": call_id(rng), "type": "tool_call"}
        for _ in range(rng.choice((1, 1, 1, 2)))
    ]


def usage(rng: random.Random, style: int) -> dict[str, Any]:
    read, wrote = rng.randint(20, 20000), rng.randint(2, 1500)
    counts: dict[str, Any] = {"input_tokens": read, "output_tokens": wrote, "total_tokens": read + wrote}
    if style == 1:
        counts["input_token_details"] = {"audio": 0, "cache_read": 0}
        counts["output_token_details"] = {"audio": 0, "reasoning": 0}
    elif style == 2:
        counts["input_token_details"] = {
            "cache_creation": 0,
            "cache_read": rng.choice((0, rng.randint(1, 9999))),
        }
    elif style == 3:
        counts["input_token_details"] = {"cache_read": 0}
        counts["output_token_details"] = {"reasoning": rng.randint(0, 900)}
    return counts


def run_id(rng: random.Random) -> str:
    return rng.choice(
        (f"lc_run--{uid(rng)}-0", f"lc_run--{uid(rng)}", f"run-{uid(rng)}-0", f"run--{uid(rng)}")
    )


def ai(rng: random.Random, text: Text) -> BaseMessage:
    provider = rng.choice(
        (openai, openai, openai, anthropic, anthropic, google, bedrock, ollama, groq, plain)
    )
    return provider(rng, text)


def openai(rng: random.Random, text: Text) -> BaseMessage:
    calls = tool_calls(rng, text) if rng.random() < 0.35 else []
    model = rng.choice(
        ("gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06", "gpt-4.1-2025-04-14", "gpt-5-mini-2025-08-07")
    )
    metadata: dict[str, Any] = {"finish_reason": "tool_calls" if calls else "stop", "model_name": model}
    metadata["system_fingerprint"] = rng.choice((None, f"fp_{rng.getrandbits(40):010x}"))
    if rng.random() < 0.6:
        read, wrote = rng.randint(20, 9000), rng.randint(2, 900)
        details = {"accepted_prediction_tokens": 0, "audio_tokens": 0, "reasoning_tokens": 0}
        tokens = {
            "completion_tokens": wrote,
            "prompt_tokens": read,
            "total_tokens": read + wrote,
            "completion_tokens_details": {**details, "rejected_prediction_tokens": 0},
            "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
        }
        metadata = {
            "token_usage": tokens,
            "model_provider": "openai",
            "model_name": model,
            "system_fingerprint": metadata["system_fingerprint"],
            "id": f"chatcmpl-{token(rng, 29)}",
            "service_tier": "default",
            "finish_reason": metadata["finish_reason"],
            "logprobs": None,
        }
    else:
        metadata |= {"service_tier": "default", "model_provider": "openai"}
    kwargs: dict[str, Any] = rng.choice(({"refusal": None}, {"refusal": None}, {}))
    if calls and rng.random() < 0.4:
        kwargs["tool_calls"] = [
            {
                "id": call["id"],
                "function": {"arguments": json.dumps(call["args"]), "name": call["name"]},
                "type": "function",
            }
            for call in calls
        ]
    return AIMessage(
        "" if calls else text(rng, "assistant"),
        additional_kwargs=kwargs,
        response_metadata=metadata,
        id=run_id(rng),
        tool_calls=calls,
        usage_metadata=usage(rng, 1),
        name=rng.choice((None, None, None, "supervisor", "agent")),
    )


def anthropic(rng: random.Random, text: Text) -> BaseMessage:
    calls = tool_calls(rng, text) if rng.random() < 0.4 else []
    model = rng.choice(
        ("claude-sonnet-4-5-20250929", "claude-3-5-sonnet-20241022", "claude-haiku-4-5-20251001")
    )
    content: Any = text(rng, "assistant")
    if calls:
        blocks = [{"text": content, "type": "text"}] if rng.random() < 0.6 else []
        content = blocks + [
            {"id": call["id"], "input": call["args"], "name": call["name"], "type": "tool_use"}
            for call in calls
        ]
    elif rng.random() < 0.15:
        thought = {"signature": token(rng, 120), "thinking": text(rng, "assistant"), "type": "thinking"}
        content = [thought, {"text": content, "type": "text"}]
    tokens = {
        "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "input_tokens": rng.randint(20, 9000),
        "output_tokens": rng.randint(2, 900),
        "server_tool_use": None,
        "service_tier": "standard",
    }
    metadata = {
        "id": f"msg_01{token(rng, 22)}",
        "model": model,
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": tokens,
        "model_name": model,
        "model_provider": "anthropic",
    }
    return AIMessage(
        content,
        response_metadata=metadata,
        id=run_id(rng),
        tool_calls=calls,
        usage_metadata=usage(rng, 2),
    )


def google(rng: random.Random, text: Text) -> BaseMessage:
    calls = tool_calls(rng, text) if rng.random() < 0.3 else []
    metadata = {
        "prompt_feedback": {"block_reason": 0, "safety_ratings": []},
        "finish_reason": "STOP",
        "model_name": rng.choice(("gemini-2.5-flash", "gemini-2.5-pro", "gemini-2.0-flash")),
        "safety_ratings": [],
        "grounding_metadata": {},
        "model_provider": "google_genai",
    }
    kwargs: dict[str, Any] = {}
    if calls:
        call = calls[0]
        kwargs = {"function_call": {"name": call["name"], "arguments": json.dumps(call["args"])}}
    return AIMessage(
        "" if calls else text(rng, "assistant"),
        additional_kwargs=kwargs,
        response_metadata=metadata,
        id=run_id(rng),
        tool_calls=calls,
        usage_metadata=usage(rng, 3),
    )


def bedrock(rng: random.Random, text: Text) -> BaseMessage:
    request = uid(rng)
    headers = {
        "date": f"Mon, {rng.randint(1, 28):02d} Jun 2025 10:{rng.randint(10, 59)}:00 GMT",
        "content-type": "application/json",
        "content-length": str(rng.randint(100, 5000)),
        "connection": "keep-alive",
        "x-amzn-requestid": request,
    }
    metadata = {
        "ResponseMetadata": {
            "RequestId": request,
            "HTTPStatusCode": 200,
            "HTTPHeaders": headers,
            "RetryAttempts": 0,
        },
        "stopReason": "end_turn",
        "metrics": {"latencyMs": [rng.randint(300, 9000)]},
        "model_provider": "bedrock_converse",
        "model_name": "anthropic.claude-3-5-sonnet-20240620-v1:0",
    }
    return AIMessage(
        text(rng, "assistant"), response_metadata=metadata, id=run_id(rng), usage_metadata=usage(rng, 2)
    )


def ollama(rng: random.Random, text: Text) -> BaseMessage:
    model = rng.choice(("llama3.1", "llama3.2", "qwen2.5:7b", "mistral", "gpt-oss:20b"))
    metadata = {
        "model": model,
        "created_at": f"2025-06-{rng.randint(10, 28)}T10:15:30.{rng.randint(100000, 999999)}Z",
        "done": True,
        "done_reason": "stop",
        "total_duration": rng.randint(10**8, 10**10),
        "load_duration": rng.randint(10**7, 10**9),
        "prompt_eval_count": rng.randint(10, 4000),
        "prompt_eval_duration": rng.randint(10**7, 10**9),
        "eval_count": rng.randint(10, 900),
        "eval_duration": rng.randint(10**7, 10**9),
        "logprobs": None,
        "model_name": model,
        "model_provider": "ollama",
    }
    return AIMessage(
        text(rng, "assistant"), response_metadata=metadata, id=run_id(rng), usage_metadata=usage(rng, 0)
    )


def groq(rng: random.Random, text: Text) -> BaseMessage:
    read, wrote = rng.randint(20, 9000), rng.randint(2, 900)
    tokens = {"completion_tokens": wrote, "prompt_tokens": read, "total_tokens": read + wrote}
    times = {f"{kind}_time": round(rng.random(), 9) for kind in ("completion", "prompt", "queue", "total")}
    metadata = {
        "token_usage": {**tokens, **times},
        "model_name": rng.choice(("llama-3.3-70b-versatile", "mistral-large-latest", "deepseek-chat")),
        "system_fingerprint": f"fp_{rng.getrandbits(40):010x}",
        "service_tier": "on_demand",
        "finish_reason": "stop",
        "logprobs": None,
        "model_provider": rng.choice(("groq", "mistralai", "deepseek")),
    }
    return AIMessage(
        text(rng, "assistant"), response_metadata=metadata, id=run_id(rng), usage_metadata=usage(rng, 0)
    )


def plain(rng: random.Random, text: Text) -> BaseMessage:
    return AIMessage(text(rng, "assistant"), id=rng.choice((run_id(rng), uid(rng), None)))


# --- what else is stored ----------------------------------------------------------------------

NODES = (
    "agent",
    "tools",
    "model",
    "supervisor",
    "researcher",
    "writer",
    "retrieve",
    "generate",
    "call_model",
)
CHANNELS = (
    "messages",
    "context",
    "documents",
    "query",
    "answer",
    "plan",
    "next",
    "summary",
    "files",
    "steps",
)


def head(rng: random.Random, text: Text) -> dict[str, Any]:
    nodes, channels = rng.sample(NODES, rng.randint(1, 4)), rng.sample(CHANNELS, rng.randint(1, 4))
    step = rng.randint(1, 400)
    versions = {"__start__": 2, "messages": step, **{f"branch:to:{node}": step for node in nodes}}
    seen = {node: {f"branch:to:{node}": step - 1} for node in nodes}
    return {
        "v": 4,
        "ts": f"2025-0{rng.randint(1, 9)}-{rng.randint(10, 28)}T10:15:30.{rng.randint(100000, 999999)}+00:00",
        "id": uid(rng),
        "channel_versions": versions | dict.fromkeys(channels, step),
        "versions_seen": {"__input__": {}, "__start__": {"__start__": 1}, **seen},
        "updated_channels": ["messages", *channels],
    }


def metadata(rng: random.Random, text: Text) -> dict[str, Any]:
    return {
        "source": rng.choice(("loop", "loop", "loop", "input", "update", "fork")),
        "step": rng.randint(-1, 400),
        "parents": rng.choice(({}, {}, {"": uid(rng)})),
        "run_id": uid(rng),
        "thread_id": uid(rng),
        "user_id": token(rng, 12),
        "langgraph_step": rng.randint(1, 40),
        "langgraph_node": rng.choice(NODES),
        "langgraph_triggers": [f"branch:to:{rng.choice(NODES)}"],
        "counters_since_delta_snapshot": {},
    }


def write(rng: random.Random, text: Text) -> Any:
    return rng.choice(
        (
            Send(rng.choice(NODES), {"messages": [human(rng, text)]}),
            Interrupt(
                {"question": text(rng, "assistant"), "action": "approve"}, id=f"{rng.getrandbits(128):032x}"
            ),
            Command(goto=rng.choice(NODES), update={"next": rng.choice(NODES)}),
            RemoveMessage(uid(rng)),
            {"messages": [human(rng, text)]},
            [ai(rng, text), tool(rng, text)],
        )
    )


def value(rng: random.Random, text: Text) -> Any:
    document = {
        "source": f"https://www.example.com/{token(rng, 9)}",
        "title": token(rng, 12),
        "score": rng.random(),
    }
    return rng.choice(
        (
            Document(text(rng, "assistant"), metadata=document, id=uid(rng)),
            [Document(text(rng, "assistant"), metadata={"source": f"{token(rng, 9)}.pdf", "page": 3})],
            {"content": text(rng, "assistant"), "created_at": "2025-06-15T10:15:30+00:00", "type": "note"},
            {"name": token(rng, 8), "status": "pending", "description": text(rng, "human"), "priority": 1},
            {f"/{token(rng, 6)}.md": {"content": text(rng, "code").split("\n"), "modified_at": "2025-06-15"}},
            text(rng, "assistant"),
        )
    )


KINDS: dict[str, tuple[int, Callable[[random.Random, Text], Any]]] = {
    "human": (20, human),
    "ai": (30, ai),
    "tool": (15, tool),
    "system": (4, system),
    "head": (8, head),
    "metadata": (8, metadata),
    "write": (8, write),
    "value": (7, value),
}


def sample(rng: random.Random, kind: str, text: Text) -> bytes:
    return CODEC.dump(KINDS[kind][1](rng, text))


def samples(rng: random.Random, count: int, text: Text) -> list[bytes]:
    kinds = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()], k=count)
    return [sample(rng, kind, text) for kind in kinds]


# --- training and report ----------------------------------------------------------------------


def train(number: int, count: int = 12_000) -> zstandard.ZstdCompressionDict:
    texts = samples(random.Random(SEED), count, written_or_new)
    return zstandard.train_dictionary(SIZE, texts, d=8, k=512, level=LEVEL, dict_id=number)


def compressor(dictionary: zstandard.ZstdCompressionDict | None) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, source_size=4096, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_dict_id=False
    )
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)


def report(dictionary: zstandard.ZstdCompressionDict) -> None:
    without, with_it = compressor(None).compress, compressor(dictionary).compress
    print(f"{'kind':10}{'text':>16}{'raw':>8}{'zstd':>8}{'with dictionary':>17}   mean bytes, held out")
    for text in (no_text, random_letters, new):
        rng = random.Random(SEED + 1)
        for kind in KINDS:
            held_out = [sample(rng, kind, text) for _ in range(200)]
            sizes = (
                mean(len(min(data, how(data), key=len)) for data in held_out) for how in (without, with_it)
            )
            columns = "".join(f"{size:{width}.0f}" for size, width in zip(sizes, (8, 17), strict=True))
            print(f"{kind:10}{text.__name__:>16}{mean(map(len, held_out)):8.0f}{columns}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=int, metavar="NUMBER", help="write the dictionary under this number")
    number = parser.parse_args().write
    dictionary = train(number or CURRENT_DICTIONARY)
    report(dictionary)
    if number is not None:
        target = TARGET / f"{number:04d}.zdict"
        if target.exists():
            raise SystemExit(f"{target} exists: a shipped dictionary is never changed, take the next number")
        TARGET.mkdir(exist_ok=True)
        target.write_bytes(dictionary.as_bytes())
        print(f"wrote {target}, {len(dictionary):,} bytes")


if __name__ == "__main__":
    main()
