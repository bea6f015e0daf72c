"""Values as users keep them in state, for Hypothesis."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections import deque
from pathlib import PurePosixPath
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from tests.codec.sample_types import (
    Access,
    Address,
    Colour,
    Frozen,
    Leaf,
    Level,
    Number,
    Open,
    Pair,
    Person,
    Point,
    Tags,
)

ANY_CHARACTERS = st.characters(exclude_categories=())  # lone surrogates and NUL included
text = st.text(max_size=20)
any_text = st.one_of(text, st.text(ANY_CHARACTERS, max_size=8))

ZONES = [ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), dt.timezone.utc]
ZONES += [dt.timezone(dt.timedelta(hours=5, minutes=30)), dt.timezone(dt.timedelta(hours=-3), "BRT")]
zones = st.sampled_from([None, *ZONES])
datetimes = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold),
    st.datetimes(min_value=dt.datetime(1900, 1, 1)),
    zones,
    st.integers(0, 1),
)
times = st.builds(lambda time, fold: time.replace(fold=fold), st.times(), st.integers(0, 1))

json_scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), text
)
enums = st.sampled_from([*Colour, *Level, *Number, *Point, Access.READ, Access.READ | Access.WRITE])
scalars = st.one_of(
    json_scalars,
    st.floats(),
    st.integers(),
    any_text,
    st.binary(max_size=20),
    datetimes,
    times,
    st.dates(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.ip_addresses(),
    enums,
    st.builds(PurePosixPath, st.sampled_from(["a", "/a/b", "."])),
    st.builds(ipaddress.ip_network, st.ip_addresses(v=4)),
)
hashables = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Frozen, st.integers(), st.integers()),
    ),
    max_leaves=4,
)
models = st.one_of(
    st.builds(Address, street=text, city=text),
    st.builds(
        Person,
        name=text,
        age=st.integers(-(2**63), 2**63),
        tags=st.sets(text, max_size=3),
        level=st.sampled_from(Level),
        born=st.one_of(st.none(), datetimes),
        scores=st.dictionaries(text, st.floats(), max_size=3),
    ),
    st.builds(Open, known=st.integers(0, 9), other=json_scalars),
    st.builds(Tags, st.lists(text, max_size=3)),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(any_text, inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=3),
        st.builds(deque, st.lists(inner, max_size=3), st.sampled_from([None, 5])),
        st.builds(Leaf, inner),
        st.builds(Pair, inner, inner),
        st.sets(hashables, max_size=3),
    )


values = st.recursive(st.one_of(scalars, models), containers, max_leaves=12)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(text, inner, max_size=4)),
    max_leaves=12,
)
plain_dicts = st.dictionaries(text, json_values, max_size=3)
