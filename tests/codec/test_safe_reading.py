"""Reading imports nothing, calls nothing and unpickles nothing, whatever the bytes name."""

from __future__ import annotations

import importlib.util
import json
import logging
import pickle
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ormsgpack
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.prompts import PromptTemplate
from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from haive_persistence.codec import SafeSerializer, decoding
from haive_persistence.errors import DecodeError
from tests.codec import sample_types as t

HERE = "tests.codec.sample_types"
SERDE = SafeSerializer()


def ext(code: int, *parts: Any) -> bytes:
    """An extension as an attacker would write it."""
    return ormsgpack.packb(ormsgpack.Ext(code, ormsgpack.packb(list(parts))))


def read(code: int, *parts: Any, serde: SafeSerializer = SERDE) -> Any:
    return serde.loads_typed(("msgpack", ext(code, *parts)))


@pytest.fixture(autouse=True)
def _nothing_happens(tmp_path: Path) -> Iterator[None]:
    """No module is imported and no canary called by any test here."""
    decoding._warned.clear()
    before = set(sys.modules)
    yield
    assert set(sys.modules) == before
    assert t.CALLS == []


FORBIDDEN: list[tuple[str, str, Any]] = [
    # advisory GHSA-g48c-2wqr-h844 / CVE-2026-28277: msgpack names what is called
    ("os", "getenv", "HOME"),
    ("os", "system", "true"),
    ("subprocess", "getoutput", "true"),
    ("subprocess", "Popen", ["true"]),
    ("builtins", "eval", "1"),
    ("builtins", "exec", "1"),
    ("builtins", "open", "/etc/passwd"),
    ("builtins", "__import__", "this"),
    ("builtins", "getattr", "x"),
    ("builtins", "type", "x"),
    ("builtins", "object", None),
    ("importlib", "import_module", "this"),
    ("pickle", "loads", b"\x80\x04N."),
    ("functools", "partial", 1),
    ("types", "FunctionType", 1),
    ("enum", "Enum", "x"),
    ("collections", "OrderedDict", [["a", 1]]),
    ("logging", "FileHandler", "x"),
    ("tempfile", "TemporaryDirectory", None),
    (HERE, "Canary", {"x": 1}),
    (HERE, "canary", "x"),
    (HERE, "canary_object", "x"),
    (HERE, "Duck", {"a": 1}),
    (HERE, "Canary.make", "x"),
    (HERE, "CanaryModel.make", "x"),
    (HERE, "T", "x"),
    (HERE, "CALLS", "x"),
    (HERE, "HumanMessage.__init__", "x"),
    (HERE, "__builtins__", "x"),
    (HERE, "", "x"),
    ("", "", "x"),
    ("no.such.module", "Thing", {"a": 1}),
    ("this", "s", "x"),  # a module that nothing has loaded
    ("antigravity", "geohash", "x"),
]


@pytest.mark.parametrize("code", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(("module", "name", "payload"), FORBIDDEN, ids=str)
def test_nothing_but_data_is_built(code: int, module: str, name: str, payload: Any) -> None:
    assert read(code, module, name, payload) == payload
    assert read(code, module, name, payload, "model_validate_json") == payload
    assert read(code, module, name, payload, {"qualname": "Canary.make"}) == payload


def test_methods_are_not_called() -> None:
    for module, name, method in [
        (HERE, "Canary", "make"),
        (HERE, "CanaryModel", "make"),
        (HERE, "CanaryModel", "model_validate_json"),
        (HERE, "CanaryModel", "parse_file"),
        ("pathlib", "Path", "read_text"),
        ("datetime", "datetime", "strptime"),
        ("os", "environ", "get"),
    ]:
        assert read(3, module, name, "payload", method) == "payload"
        assert read(5, module, name, "payload", method) == "payload"


def test_hostile_modules_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_on_path.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for code in range(8):
        read(code, "trap_on_path", "Thing", "payload", "make")
    assert "trap_on_path" not in sys.modules


def test_module_getattr_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lazy_attributes")

    def no_lookup(name: str) -> Any:
        t.CALLS.append(f"__getattr__({name})")
        return t.Leaf

    module.__getattr__ = no_lookup  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy_attributes", module)
    assert read(2, "lazy_attributes", "Leaf", {"value": 1}) == {"value": 1}
    monkeypatch.delitem(sys.modules, "lazy_attributes")


def test_lazy_modules_stay_unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazy_trap.py").write_text(
        "from tests.codec.sample_types import CALLS; CALLS.append('loaded')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.find_spec("lazy_trap")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lazy_trap", module)
    spec.loader.exec_module(module)
    assert read(2, "lazy_trap", "Thing", {"value": 1}) == {"value": 1}
    monkeypatch.delitem(sys.modules, "lazy_trap")


def test_what_acts_is_not_data() -> None:
    """Prompts, models and tools are pydantic models; settings read files that data could name."""
    prompt = PromptTemplate.from_template("{x}")
    written = SERDE.dumps_typed(prompt)
    assert isinstance(SERDE.loads_typed(written), dict)
    fields = {"template": "{{x}}", "template_format": "jinja2"}
    assert read(5, "langchain_core.prompts.prompt", "PromptTemplate", fields) == fields


def test_settings_classes_are_not_data(monkeypatch: pytest.MonkeyPatch) -> None:
    class BaseSettings(t.BaseModel):
        pass

    class Settings(BaseSettings):
        path: str = ""

    package, module = types.ModuleType("pydantic_settings"), types.ModuleType("pydantic_settings.main")
    module.BaseSettings = BaseSettings  # type: ignore[attr-defined]
    Settings.__module__, Settings.__qualname__ = HERE, "Settings"
    monkeypatch.setattr(t, "Settings", Settings, raising=False)
    monkeypatch.setitem(sys.modules, "pydantic_settings", package)
    monkeypatch.setitem(sys.modules, "pydantic_settings.main", module)
    assert read(5, HERE, "Settings", {"path": "x", "_env_file": "/etc/passwd"}) == {
        "path": "x",
        "_env_file": "/etc/passwd",
    }
    monkeypatch.undo()


def test_pickle_is_refused() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (t.canary, ())

    with pytest.raises(DecodeError, match="pickled"):
        SERDE.loads_typed(("pickle", pickle.dumps(Bomb())))
    assert read(0, "pickle", "loads", pickle.dumps(Bomb())) == pickle.dumps(Bomb())


# --- the 'json' type of old releases ----------------------------------------------------------


def read_json(value: Any, serde: SafeSerializer = SERDE) -> Any:
    return serde.loads_typed(("json", json.dumps(value).encode()))


def constructor(lc: int, *path: str, **more: Any) -> dict[str, Any]:
    return {"lc": lc, "type": "constructor", "id": list(path), **more}


@pytest.mark.parametrize(
    "value",
    [
        # CVE-2025-64439 / GHSA-wwqv-p2pp-99h5: a json constructor that is anything
        constructor(2, "os", "system", args=["true"]),
        constructor(2, "builtins", "eval", args=["1"]),
        constructor(2, *HERE.split("."), "canary", args=["x"]),
        constructor(2, *HERE.split("."), "Canary", kwargs={"x": 1}),
        constructor(2, *HERE.split("."), "CanaryModel", kwargs={"x": 1}),
        constructor(2, "this", "s", args=[]),
        # CVE-2026-48775 / GHSA-fjqc-hq36-qh5p: a method named by the data
        constructor(2, *HERE.split("."), "CanaryModel", method="make", args=["x"]),
        constructor(2, *HERE.split("."), "CanaryModel", method=[None, "make"], args=["x"]),
        constructor(2, "datetime", "datetime", method="strptime", args=["2020", "%Y"]),
        # CVE-2025-68664 / GHSA-c67j-w6g6-q2cm: user dicts with `lc`, secrets of the environment
        {"lc": 1, "type": "secret", "id": ["HOME"]},
        {"lc": 1, "type": "secret", "id": ["PATH"], "more": 1},
        {"lc": 1, "type": "not_implemented", "id": ["a", "b"]},
        {"lc": 1, "type": "constructor"},
        {"lc": 1, "type": "constructor", "id": []},
        {"lc": 1, "type": "constructor", "id": "ab"},
        {"lc": 1, "type": "constructor", "id": [1, 2], "kwargs": {}},
        {"lc": 2, "type": "constructor", "id": ["os", 7, "x"]},
        {"lc": "1", "type": "constructor", "id": ["langchain", "schema", "messages", "HumanMessage"]},
        constructor(1, "langchain", "llms", "openai", "OpenAI", kwargs={"openai_api_key": "x"}),
        constructor(1, "langchain", "prompts", "prompt", "PromptTemplate", kwargs={"template": "{x}"}),
        constructor(1, *HERE.split("."), "CanaryModel", kwargs={"x": 1}),
        constructor(1, "langchain_core", "messages", "human", "HumanMessage", kwargs={}),  # content missing
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_marked_dicts_stay_dicts(value: Any) -> None:
    assert read_json([{"a": value}]) == [{"a": value}]
    assert SERDE.loads_typed(SERDE.dumps_typed([{"a": value}])) == [{"a": value}]  # msgpack never revives


def test_prompts_with_templates_stay_dicts() -> None:
    """A jinja2 template in stored data is code."""
    value = constructor(
        1,
        *("langchain", "prompts", "prompt", "PromptTemplate"),
        kwargs={"template": "{{x}}", "template_format": "jinja2", "input_variables": ["x"]},
    )
    assert read_json(value) == value


# --- hints ------------------------------------------------------------------------------------


def test_refusal_is_logged_once_and_announced(caplog: pytest.LogCaptureFixture) -> None:
    events: list[SerdeEvent] = []
    unregister = register_serde_event_listener(events.append)
    try:
        for _ in range(3):
            assert read(0, HERE, "Canary", {"x": 1}) == {"x": 1}
            assert read(3, HERE, "Canary", {"x": 1}, "make") == {"x": 1}
    finally:
        unregister()
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2
    assert "not a data type" in messages[0]
    assert "list it in allowed_msgpack_modules" in messages[0]
    assert events[0] == {"kind": "msgpack_blocked", "module": HERE, "name": "Canary"}
    assert events[1]["kind"] == "msgpack_method_blocked"
    assert len(events) == 6


def test_the_module_to_import_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert read(5, "shop.models", "Order", {"id": 1}) == {"id": 1}
    assert "import shop.models before reading" in caplog.text


def test_warnings_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1100):
        read(0, "made.up", f"Name{number}", 1)
    assert len(caplog.records) == 1000


def test_data_types_of_loaded_modules_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for value in (t.Leaf(1), t.Person(name="a"), t.Colour.RED, t.Pair(1), HumanMessage("x"), t.Names({1})):
        assert SERDE.loads_typed(SERDE.dumps_typed(value)) == value
    assert caplog.records == []


def test_a_value_that_cannot_be_rebuilt_keeps_its_data(caplog: pytest.LogCaptureFixture) -> None:
    assert read(0, HERE, "Colour", "no such colour") == "no such colour"
    assert read(2, HERE, "Frozen", {"unknown": 1}) == {"unknown": 1}
    assert read(0, "uuid", "UUID", "not hexadecimal") == "not hexadecimal"
    assert "Its plain data is returned" in caplog.text


def test_the_looked_up_thing_must_be_the_class_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias counts if its class lives where it says: moved classes are found, impostors are not."""
    monkeypatch.setattr(t, "OldName", t.Leaf, raising=False)
    assert read(2, HERE, "OldName", {"value": 1}) == t.Leaf(1)

    class Impostor(t.BaseModel):
        pass

    Impostor.__module__, Impostor.__qualname__ = "somewhere.else", "Thing"
    monkeypatch.setattr(t, "Thing", Impostor, raising=False)
    assert read(5, HERE, "Thing", {"a": 1}) == {"a": 1}


def test_a_class_defined_anew_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook whose cell is run again."""
    for _ in range(2):
        cls = type("Again", (t.Leaf,), {"__module__": HERE})
        monkeypatch.setattr(t, "Again", cls, raising=False)
        assert type(read(2, HERE, "Again", {"value": 1})) is cls
    monkeypatch.delattr(t, "Again")
    assert read(2, HERE, "Again", {"value": 1}) == {"value": 1}


def test_unknown_extensions_are_an_error() -> None:
    """LangGraph reads them as None, which loses the value."""
    with pytest.raises(DecodeError, match="newer version"):
        read(77, "a", "b", 1)
    assert JsonPlusSerializer().loads_typed(("msgpack", ext(77, "a", "b", 1))) is None


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x91", b"\xa5ab", b"\xdd\xff\xff\xff\xff", ext(0), ext(0, 1, 2, 3)]
)
def test_damaged_bytes(data: bytes) -> None:
    with pytest.raises(DecodeError, match="damaged"):
        SERDE.loads_typed(("msgpack", data))
    with pytest.raises(DecodeError, match="damaged"):
        SERDE.loads_typed(("msgpack", ormsgpack.packb(ormsgpack.Ext(0, data))))


def test_unknown_type_and_damaged_json() -> None:
    with pytest.raises(DecodeError, match="unknown serialisation type"):
        SERDE.loads_typed(("msgpack+aes", b""))
    other_encodings = (b"\xff\xfe[\x001\x00]\x00", b"[\x001\x00]\x00", b"\0\0\0[\0\0\x001\0\0\0]")
    for data in (b"{", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", *other_encodings):
        with pytest.raises(DecodeError, match="damaged"):
            SERDE.loads_typed(("json", data))


def test_nesting_costs_neither_the_process_nor_its_memory() -> None:
    data = b"\x01"
    for _ in range(3000):
        data = ormsgpack.packb(ormsgpack.Ext(7, data))
    with pytest.raises(DecodeError, match="deeper"):
        SERDE.loads_typed(("msgpack", data))
    data = bytes(1_000_000)
    data = b"\xc6" + len(data).to_bytes(4, "big") + data
    for _ in range(100):
        data = ormsgpack.packb(ormsgpack.Ext(7, data))
    SERDE.loads_typed(("msgpack", data))
    with pytest.raises(DecodeError, match=r"more than 50,000,000 bytes .*max_read_bytes"):
        SERDE.within(50_000_000).loads_typed(("msgpack", data))
    assert decoding._state.open_bytes == 0
    big = [t.Leaf(bytes(200_000)) for _ in range(50)]
    assert SERDE.loads_typed(SERDE.dumps_typed(t.Leaf(t.Leaf(big)))) == t.Leaf(t.Leaf(big))


def test_arrays_of_objects_and_odd_types_are_not_built() -> None:
    for kind in (
        "O",
        "|O",
        "O8",
        "<i4,O",
        "object",
        "numpy:x",
        "(2,)O",
        [["a", "O"]],
        [["a", "|O8"]],
        5,
        None,
    ):
        parts = [kind, [1], "C", bytes(8)]
        assert read(6, *parts) == parts
    for parts in (
        [],
        ["<i4"],
        ["<i4", [2], "C", bytes(4)],
        ["<i4", [1], "X", bytes(4)],
        ["<i4", "x", "C", b""],
    ):
        assert read(6, *parts) == parts


def in_a_new_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_types_of_modules_that_are_not_loaded() -> None:
    person, array = SERDE.dumps_typed(t.Leaf([1])), SERDE.dumps_typed(np.arange(3))
    out = in_a_new_process(
        f"""
        import logging, sys
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
        from haive_persistence.codec import SafeSerializer
        serde = SafeSerializer()
        before = set(sys.modules)
        print(serde.loads_typed({person!r}))
        print(serde.loads_typed({array!r})[0])
        print(serde.loads_typed({SERDE.dumps_typed(HumanMessage("hi"))!r}).content)
        assert set(sys.modules) == before, set(sys.modules) - before
        """
    )
    assert "{'value': [1]}" in out
    assert "import tests.codec.sample_types before reading" in out
    assert "import numpy before reading" in out
    assert "<i8" in out
    assert "hi" in out
