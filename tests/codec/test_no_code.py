"""Stored bytes build objects without running a class's code, and never what acts or reads the environment."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import langsmith.run_trees  # loaded, so that stored bytes could name it
import ormsgpack
import pytest
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import (
    BaseModel,
    Field,
    HttpUrl,
    ImportString,
    PrivateAttr,
    RootModel,
    field_validator,
    model_validator,
)
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import validator

from haive_persistence.codec import SafeSerializer, is_unbuilt
from haive_persistence.config import PersistenceConfig

HERE = __name__
SERDE = SafeSerializer()
CALLS: list[str] = []


def ext(code: int, *parts: Any) -> bytes:
    return ormsgpack.packb(ormsgpack.Ext(code, ormsgpack.packb(list(parts))))


def read(code: int, *parts: Any, serde: SafeSerializer = SERDE) -> Any:
    return serde.loads_typed(("msgpack", ext(code, *parts)))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.CRITICAL, "haive_persistence.codec")
    CALLS.clear()
    yield
    assert CALLS == []


def called(name: str) -> Any:
    CALLS.append(name)
    return None


class Inner(BaseModel):
    x: int

    @field_validator("x")
    @classmethod
    def _check(cls, x: int) -> int:
        called("Inner validator")
        return x


class Watched(BaseModel):
    """Everything that runs code when a model is validated."""

    inner: Inner
    many: list[Inner] = []
    made: str = Field(default_factory=lambda: called("default factory") or "x")
    _private: Any = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _before(cls, data: Any) -> Any:
        called("before")
        return data

    @model_validator(mode="after")
    def _after(self) -> Watched:
        called("after")
        return self

    def model_post_init(self, context: Any, /) -> None:
        called("model_post_init")
        super().model_post_init(context)


class WithInit(BaseModel):
    x: int

    def __init__(self, **fields: Any) -> None:
        called("__init__")
        super().__init__(**fields)


class Root(RootModel[list[Inner]]):
    pass


@dataclasses.dataclass
class Data:
    x: int
    y: Any = dataclasses.field(default_factory=lambda: called("dataclass factory"))

    def __post_init__(self) -> None:
        called("__post_init__")


class Text(str):
    def __new__(cls, value: str) -> Text:
        called("__new__")
        return super().__new__(cls, value)


class Items(dict):  # type: ignore[type-arg]
    def __init__(self, *args: Any) -> None:
        called("__init__")
        super().__init__(*args)

    def __setitem__(self, key: Any, value: Any) -> None:
        called("__setitem__")
        super().__setitem__(key, value)


class Failure(Exception):
    def __init__(self, *args: Any) -> None:
        called("__init__")
        super().__init__(*args)


class OldModel(BaseModelV1):
    x: int

    @validator("x")
    def _check(cls, x: int) -> int:
        called("v1 validator")
        return x


class Holds(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    chain: Runnable | None = None


class HoldsFunction(BaseModel):
    call: Callable[[], None] | None = None


class Imports(BaseModel):
    thing: ImportString[Any]


class Patterned(BaseModel):
    pattern: re.Pattern[str]


def made_without_code(make: Any) -> Any:
    value = make()
    CALLS.clear()
    return value


WATCHED = [
    lambda: Watched(inner=Inner(x=1), many=[Inner(x=2)]),
    lambda: WithInit(x=1),
    lambda: Root([Inner(x=1)]),
    lambda: Data(1, 2),
    lambda: Text("x"),
    lambda: Items({"a": 1}),
    lambda: Failure("x", 1),
]


@pytest.mark.parametrize("number", range(len(WATCHED)))
def test_objects_come_back_and_no_code_runs(number: int) -> None:
    value = made_without_code(WATCHED[number])
    back = SERDE.loads_typed(SERDE.dumps_typed([value]))[0]
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_langgraphs_own_bytes_run_no_code_either() -> None:
    fields = {"inner": {"x": 1}, "many": [{"x": 2}], "made": "y"}
    value = read(5, HERE, "Watched", fields, "model_validate_json")
    assert type(value) is Watched
    assert (type(value.inner), type(value.many[0]), value.made) == (Inner, Inner, "y")
    assert value._private == {}
    assert type(read(5, HERE, "WithInit", {"x": 1}, "model_validate_json")) is WithInit
    assert type(read(5, HERE, "Root", [{"x": 1}], "model_validate_json").root[0]) is Inner
    assert read(2, HERE, "Data", {"x": 1, "y": 2}).x == 1


def test_a_field_that_only_a_factory_knows_leaves_it_unbuilt(caplog: pytest.LogCaptureFixture) -> None:
    for code, name, fields in [(5, "Watched", {"inner": {"x": 1}}), (2, "Data", {"x": 1})]:
        value = read(code, HERE, name, fields)
        assert is_unbuilt(value)
        assert value == fields


def test_a_listed_class_builds_itself() -> None:
    listed = SafeSerializer(allowed_msgpack_modules=[Data, Watched])
    assert type(read(2, HERE, "Data", {"x": 1}, serde=listed)) is Data
    assert CALLS == ["dataclass factory", "__post_init__"]
    CALLS.clear()
    assert type(read(5, HERE, "Watched", {"inner": {"x": 1}}, serde=listed)) is Watched
    assert "default factory" in CALLS
    CALLS.clear()


def test_an_old_model_with_validators_is_not_built() -> None:
    assert is_unbuilt(read(4, HERE, "OldModel", {"x": 1}))


@pytest.mark.parametrize("name", ["Holds", "HoldsFunction"])
@pytest.mark.parametrize("how", ["model_validate_json", "model_construct"])
def test_a_model_that_holds_what_acts_is_not_built(name: str, how: str) -> None:
    assert is_unbuilt(read(5, HERE, name, {}, how))
    assert is_unbuilt(read(5, HERE, name, {"chain": None, "call": None}, how))


def test_an_import_string_is_not_imported() -> None:
    before = set(sys.modules)
    value = read(5, HERE, "Imports", {"thing": "antigravity.geohash"}, "model_validate_json")
    assert "antigravity" not in sys.modules
    assert set(sys.modules) == before
    assert value.thing == "antigravity.geohash"


class CanaryUrl(HttpUrl):
    """A URL whose code notices that it runs."""

    runs: ClassVar[list[str]] = []

    def __new__(cls, *args: Any) -> Any:
        cls.runs.append("__new__")
        return super().__new__(cls)

    def __init__(self, url: Any) -> None:
        self.runs.append("__init__")
        super().__init__(url)

    def __setattr__(self, name: str, value: Any) -> None:
        self.runs.append("__setattr__")
        super().__setattr__(name, value)


class HasUrl(BaseModel):
    url: CanaryUrl


def test_urls_are_parsed_and_no_code_of_their_class_runs() -> None:
    value = [CanaryUrl("http://a"), HasUrl(url="http://b")]  # type: ignore[arg-type]
    stored = SERDE.dumps_typed(value)
    dumped = ormsgpack.packb([__name__, "HasUrl", {"url": "http://b/"}, "model_validate_json"])
    CanaryUrl.runs.clear()
    assert SERDE.loads_typed(stored) == value
    found = SERDE.loads_typed(("msgpack", ormsgpack.packb(ormsgpack.Ext(5, dumped))))
    assert CanaryUrl.runs == []
    assert found == value[1]
    assert type(found.url) is CanaryUrl


@pytest.mark.parametrize(
    "payload", ["no url", "http://a", 7, b"http://a/", ["http://a/"], "http://[", "", None]
)
def test_what_is_no_url_stays_as_it_is(payload: Any) -> None:
    data = ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb(["pydantic.networks", "HttpUrl", payload])))
    value = SERDE.loads_typed(("msgpack", data))
    assert is_unbuilt(value)
    assert value == payload
    assert SERDE.dumps_typed(value) == ("msgpack", data)


def test_configurations_and_connections_are_never_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that names PersistenceConfig would copy the environment's password into the state."""
    monkeypatch.setenv("HAIVE_CONNECTION_STRING", "postgresql://u:secret@h/d")
    listed = SafeSerializer(allowed_msgpack_modules=[PersistenceConfig])
    for serde in (SERDE, listed):
        for code in (0, 1, 2, 4, 5):
            value = read(code, "haive_persistence.config", "PersistenceConfig", {}, serde=serde)
            assert is_unbuilt(value)
            assert "secret" not in repr(value)
    assert is_unbuilt(read(5, "langsmith.run_trees", "RunTree", {"name": "x", "run_type": "chain"}))
    assert langsmith.run_trees is not None


def loaded_data_types() -> list[type]:
    """Every model and dataclass that stored bytes could name here."""
    found = []
    for cls in [one for one in gc.get_objects() if isinstance(one, type)]:
        try:
            if issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls):
                found.append(cls)
        except TypeError:
            pass
    return found


@pytest.mark.filterwarnings("ignore")
def test_no_loaded_class_reads_the_environment_or_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"HAIVE_CONNECTION_STRING", "OPENAI_API_KEY", "LANGSMITH_API_KEY", "LANGCHAIN_API_KEY"}
    for name in names:
        monkeypatch.setenv(name, "s3cr3t")
    classes = loaded_data_types()
    assert len(classes) > 100
    before, events = set(sys.modules), []
    watching = True

    def watch(event: str, args: Any) -> None:
        if watching and event in ("import", "open", "exec", "socket.connect", "subprocess.Popen"):
            events.append((event, args))

    sys.addaudithook(watch)
    try:
        for cls in classes:
            names = [cls.__module__, cls.__name__]
            for code, more in ((2, ()), (5, ("model_validate_json",)), (5, ("model_construct",))):
                for fields in ({}, {"name": "x", "run_type": "chain", "content": "x", "type": "human"}):
                    value = read(code, *names, fields, *more, {"qualname": cls.__qualname__})
                    assert not isinstance(value, Runnable), cls
                    assert "s3cr3t" not in repr(getattr(value, "__dict__", value)), cls
                    assert not any(
                        isinstance(part, Runnable) for part in getattr(value, "__dict__", {}).values()
                    )
    finally:
        watching = False
    assert set(sys.modules) == before
    assert events == []
    assert os.environ["OPENAI_API_KEY"] == "s3cr3t"


def test_a_prompt_in_a_chain_stays_data() -> None:
    assert isinstance(RunnableLambda(lambda x: x), Runnable)
    nested = ormsgpack.Ext(5, ormsgpack.packb(["langchain_core.prompts.prompt", "PromptTemplate", {}]))
    value = read(5, HERE, "Holds", {"chain": nested})
    assert is_unbuilt(value)
    assert is_unbuilt(value["chain"])


# --- standard values with limits --------------------------------------------------------------


def test_time_zones_import_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import zoneinfo

    assert read(0, "zoneinfo", "ZoneInfo", "Europe/Paris") == zoneinfo.ZoneInfo("Europe/Paris")
    before = set(sys.modules)
    for key in ("No/Such", "../../etc/passwd", "/etc/localtime", "", "tzdata", 7, "a" * 10_000, "a/b/c/d/e"):
        assert is_unbuilt(read(0, "zoneinfo", "ZoneInfo", key))
    monkeypatch.setattr(zoneinfo, "TZPATH", ())
    zoneinfo.ZoneInfo.clear_cache(only_keys=["Asia/Tokyo"])
    if "tzdata.zoneinfo.Asia" not in sys.modules:
        assert is_unbuilt(read(0, "zoneinfo", "ZoneInfo", "Asia/Tokyo"))
    assert set(sys.modules) == before


@pytest.mark.timeout(20)
def test_patterns_are_compiled_within_limits() -> None:
    assert read(1, "re", "compile", ["a+", re.IGNORECASE.value]) == re.compile("a+", re.IGNORECASE)
    wide = "[\u0100-\U0010ffff]"
    for source in ("a" * 3_000, wide * 20, "(" * 500 + ")" * 500, "(?i)" + wide, 7):
        assert is_unbuilt(read(1, "re", "compile", [source, re.IGNORECASE.value]))
    value = read(5, HERE, "Patterned", {"pattern": "x" * 100_000}, "model_validate_json")
    assert not isinstance(getattr(value, "pattern", None), re.Pattern)


def test_a_pattern_does_not_print_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert is_unbuilt(read(1, "re", "compile", ["a(b|c)", re.DEBUG.value]))
    assert capsys.readouterr() == ("", "")


def test_sizes_are_checked_before_memory_is_taken() -> None:
    """21 bytes that were `bytearray(3 << 30)`, and others of their kind."""
    huge = 3 << 30
    assert is_unbuilt(read(6, "<f4", [1], "C", huge))
    assert is_unbuilt(read(0, "builtins", "bytes", huge))
    assert is_unbuilt(read(0, "numpy", "bytes_", [huge]))
    assert is_unbuilt(read(0, "numpy", "bytes_", huge))
    assert is_unbuilt(read(0, HERE, "Text", huge))
    assert is_unbuilt(read(1, "builtins", "int", ["9" * 5_000, 10]))


@pytest.mark.parametrize("kilobytes", [64, 128, 256])
@pytest.mark.parametrize("lists", [0, 1, 30, 900])
def test_small_stacks_are_enough(kilobytes: int, lists: int) -> None:
    data = b"\x01"
    for _ in range(200):
        data = b"\x91" * lists + ormsgpack.packb(ormsgpack.Ext(7, data))
    nested: Any = 1
    for _ in range(60):
        for _ in range(lists // 3):
            nested = [nested]
        nested = (nested,)
    outcomes: list[Any] = []

    def run() -> None:
        for use in (
            lambda: SERDE.loads_typed(("msgpack", data)),
            lambda: SERDE.loads_typed(("json", b"[" * 900)),
            lambda: SERDE.dumps_typed(nested),
        ):
            try:
                outcomes.append(use())
            except ValueError as exc:
                outcomes.append(exc)

    threading.stack_size(kilobytes * 1024)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(0)
    thread.join()
    assert len(outcomes) == 3


def test_objects_in_objects_do_not_end_the_process() -> None:
    """827 bytes, compressed, took more than the 8 MiB of a main thread."""
    script = """
import ormsgpack
from haive_persistence.codec import SafeSerializer
from haive_persistence.errors import DecodeError
for levels in (150, 600, 3_000):
    data = b"\\x01"
    for _ in range(levels):
        data = ormsgpack.packb(ormsgpack.Ext(7, b"\\x91" * 30 + data))
    try:
        SafeSerializer().loads_typed(("msgpack", data))
    except DecodeError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_what_needs_a_large_stack_is_read() -> None:
    value: Any = "x" * 2000
    for _ in range(150):
        value = (value,)
    assert SERDE.loads_typed(SERDE.dumps_typed(value)) == value
