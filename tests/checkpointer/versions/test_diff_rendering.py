"""How a diff is shown: the exact text of known ones, and that a state's text cannot act."""

from __future__ import annotations

import builtins
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from haive_persistence.checkpointer.versions.diff import compare_states

CALL = {"name": "search", "args": {"query": "weather in Bern", "limit": 3}, "id": "call_1"}
ASKED = HumanMessage("Will it rain in Bern tomorrow?", id="h1")
ANSWER = AIMessage("Tomorrow will be dry, with 18 degrees at noon.", id="a2")
BEFORE = {
    "messages": [
        ASKED,
        AIMessage("", id="a1", tool_calls=[CALL]),
        ToolMessage("dry, 18 degrees", id="t1", tool_call_id="call_1"),
        ANSWER,
        HumanMessage("Thanks", id="h2"),
    ],
    "attempts": 1,
    "draft": "old",
}
AFTER = {
    "messages": [
        ASKED,
        AIMessage("", id="a1", tool_calls=[{**CALL, "args": {"query": "weather in Bern", "limit": 5}}]),
        ToolMessage("dry, 21 degrees", id="t1", tool_call_id="call_1"),
        AIMessage("Tomorrow will be sunny, with 21 degrees at noon.", id="a2"),
        HumanMessage("And in Geneva?", id="h3"),
    ],
    "attempts": 2,
    "sources": ("meteo", "radar"),
}


def test_a_chat() -> None:
    diff = compare_states(BEFORE, AFTER, names=("main", "what-if"))
    assert diff.to_text() == str(diff)
    assert diff.to_text().splitlines() == [
        "--- main",
        "+++ what-if",
        "messages: 1 added, 1 removed, 3 changed",
        "  ~ [1] AIMessage a1",
        "      tool_calls:",
        "        ~ [0] call_1",
        "            args:",
        "              limit: 3 → 5",
        "  ~ [2] ToolMessage t1",
        "      content: dry, [-18-]{+21+} degrees",
        "  ~ [3] AIMessage a2",
        "      content: Tomorrow will be [-dry-]{+sunny+}, with [-18-]{+21+} degrees at noon.",
        '  - [4] HumanMessage h2 "Thanks"',
        '  + [4] HumanMessage h3 "And in Geneva?"',
        "attempts: 1 → 2",
        '- draft: "old"',
        '+ sources: ("meteo", "radar")',
    ]


def test_moved_messages() -> None:
    before = {"messages": [ASKED, ANSWER, HumanMessage("Thanks", id="h2")]}
    after = {"messages": [HumanMessage("Thanks!", id="h2"), ASKED, ANSWER]}
    assert compare_states(before, after).to_text().splitlines()[2:] == [
        "messages: 1 changed, 1 moved",
        "  > [2 → 0] HumanMessage h2",
        "      content: Thanks{+!+}",
    ]
    after = {"messages": [HumanMessage("Thanks", id="h2"), ASKED, ANSWER]}
    assert compare_states(before, after).to_text().splitlines()[2:] == [
        "messages: 1 moved",
        '  > [2 → 0] HumanMessage h2 "Thanks"',
    ]


def test_other_values() -> None:
    before = {
        "rows": [{"a": 1}, {"a": 2}],
        "tags": {"x", "y"},
        "pair": (1, "one two"),
        "data": b"abc",
        "f": 0.5,
    }
    after = {
        "rows": [{"a": 1}, {"a": 3}, 7],
        "tags": {"y", "z"},
        "pair": (1, "one three"),
        "data": b"",
        "f": None,
    }
    assert compare_states(before, after).to_text().splitlines()[2:] == [
        "rows: 1 added, 1 changed",
        "  ~ [1]",
        "      a: 2 → 3",
        "  + [2] 7",
        "tags: 1 added, 1 removed",
        '  - "x"',
        '  + "z"',
        "pair: 1 changed",
        "  ~ [1] one [-two-]{+three+}",
        "data: bytes(3 bytes, digest cf4ab791) → bytes(0 bytes, digest cae66941)",
        "f: 0.5 → null",
    ]


def test_only_counts_without_details() -> None:
    diff = compare_states(BEFORE, AFTER, include_details=False)
    assert diff.to_text().splitlines() == [
        "--- before",
        "+++ after",
        "messages: 1 added, 1 removed, 3 changed",
        "attempts: 1 changed",
        "draft: 1 removed",
        "sources: 1 added",
    ]
    assert "3 changed" in diff._repr_html_()


def test_no_differences() -> None:
    diff = compare_states(BEFORE, BEFORE)
    assert diff.to_text() == "no differences"
    assert "no differences" in diff._repr_html_()


@pytest.mark.parametrize("width", [30, 60, 100])
def test_lines_fit_the_width(width: int) -> None:
    long = " ".join(f"word{n}" for n in range(200))
    before = {"a": long, "b": [long], "c": {"k": 1}, "d": long}
    after = {"a": long.replace("word9", "other9"), "b": [long, {"k": [long]}], "c": {"k": long}}
    text = compare_states(before, after).to_text(width=width)
    assert max(map(len, text.splitlines())) <= width + len("[--]{++}")
    assert "[-word9-]{+other9+}" in text.replace("\n    ", "")


def test_long_runs_of_what_stayed_are_shortened() -> None:
    long = " ".join(f"word{n}" for n in range(2000))
    text = compare_states({"a": long}, {"a": long.replace("word1000 ", "")}).to_text()
    assert len(text) < 300
    assert "… " in text
    assert "[-word1000 -]" in text.replace("\n    ", "")


def test_texts_of_a_state_cannot_act_on_a_terminal() -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\r\u202egnp.exe\u200b\x9b31m\ud800"
    before = {"a": evil, evil: 1, "m": [HumanMessage(evil, id=evil)], "k": {evil: evil}}
    after = {"a": f"{evil} x", "m": [HumanMessage("b", id=evil), HumanMessage(evil)], "k": {evil: 1, 2: evil}}
    diff = compare_states(before, after, names=(evil, evil))
    for shown in (diff.to_text(), diff._repr_html_()):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e\ud800]", shown)
        assert "\\x1b[2J" in shown
    colored = diff.to_text(color=True)
    assert set(re.findall("\x1b[^m]*m", colored)) <= set(re.findall(r"\x1b\[[0-9;]*m", colored))
    assert "\x1b[2J" not in colored


class Checker(HTMLParser):
    """Reads markup: its tags, attributes, and whether they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_is_well_formed_and_shows_text_as_text() -> None:
    evil = '</span><script>alert(1)</script><img src=x onerror="alert(2)">&amp;'
    before = {**BEFORE, evil: 1, "x": evil, "k": {evil: [evil]}, "s": {evil}}
    after = {**AFTER, "x": f"{evil} more", "k": {evil: [1]}, "new": evil, "s": {1}}
    after["messages"] = [*AFTER["messages"], HumanMessage(evil, id=evil)]
    shown = compare_states(before, after, names=(evil, "b"))._repr_html_()
    reader = Checker()
    reader.feed(shown)
    reader.close()
    assert not reader.open
    assert reader.tags == {
        *("div", "style", "del", "ins", "details", "summary", "ul", "li", "b", "small", "span")
    }
    assert reader.attributes == {"class", "open"}
    assert "alert(1)" in "".join(reader.texts)
    assert not re.search(r"https?:|url\(|@import", shown)
    assert "prefers-color-scheme:dark" in shown
    assert "<del>18</del><ins>21</ins>" in shown


def test_html_of_much_is_bounded() -> None:
    before = {"m": [HumanMessage("x" * 10_000, id=f"a{n}") for n in range(1000)]}
    after = {"m": [HumanMessage("y" * 10_000, id=f"b{n}") for n in range(1000)]}
    shown = compare_states(before, after)._repr_html_()
    assert len(shown) < 500_000
    assert re.search(r"and 1,[89]\d\d more", shown)
    rows = [{"id": n, **{str(k): "x" * 3000 for k in range(100)}} for n in range(100)]
    changed = [{**row, **{str(k): "y " * 1500 for k in range(100)}} for row in rows]
    assert len(compare_states({"m": rows}, {"m": changed})._repr_html_()) < 1_000_000
    words = " ".join(f"word{n}" for n in range(50_000))
    assert len(compare_states({"m": words}, {"m": words.replace("7", "8")})._repr_html_()) < 200_000


def test_colours_mark_what_the_signs_say() -> None:
    pytest.importorskip("rich")
    diff = compare_states(BEFORE, AFTER)
    colored = diff.to_text(color=True)
    assert "\x1b[32m21\x1b[0m" in colored
    assert "[-18-]" not in colored
    plain = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert "Tomorrow will be drysunny, with 1821 degrees at noon." in plain
    assert plain.splitlines()[:5] == diff.to_text().splitlines()[:5]
    assert str(diff.__rich__()) == plain


def test_without_rich_the_text_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "rich":
            raise ImportError(name)
        return original(name, *args)

    diff = compare_states(BEFORE, AFTER)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert diff.to_text(color=True) == diff.to_text()
    assert diff.__rich__() == diff.to_text()


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("one two three", "one 2 three", "one [-two-]{+2+} three"),
        ("a b", "a b c", "a b{+ c+}"),
        ("the cat sat", "a dog sat", "[-the cat-]{+a dog+} sat"),
        ("abc", "abd", '"abc" → "abd"'),
        ("a" * 70, "b" * 70, f"[-{'a' * 70}-]\n    {{+{'b' * 70}+}}"),
        ("a ", "a", "a[- -]"),
        ("foo(bar)", "foo(baz)", "foo([-bar-]{+baz+})"),
        ("今天天气很好", "今天天气不好", "今天天气[-很-]{+不+}好"),
        ("", "new", '"" → "new"'),
        ("old", "", '"old" → ""'),
        ("price: 10.50", "price: 12.50", "price: [-10-]{+12+}.50"),
        ("line one\nline two", "line one\nline 2", "line one\n    line [-two-]{+2+}"),
    ],
)
def test_words(before: str, after: str, shown: str) -> None:
    assert compare_states({"t": before}, {"t": after}).to_text().split("\n", 2)[2] == f"t: {shown}"
