"""State types as users write them, and things that stored data must never reach."""

from __future__ import annotations

import enum
import pathlib
import threading
import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

from langchain_core.messages import AnyMessage, HumanMessage
from pydantic import (
    AliasChoices,
    AliasPath,
    AnyUrl,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    FileUrl,
    HttpUrl,
    PlainSerializer,
    PostgresDsn,
    PrivateAttr,
    RootModel,
    SecretStr,
    UrlConstraints,
    WebsocketUrl,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")

CALLS: list[str] = []
"""What the canaries below have been called with. Stays empty."""


# --- enums ------------------------------------------------------------------------------------


class Answer(enum.Enum):
    YES = True
    NO = False
    NONE = None


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(str, enum.Enum):
    LOW = "low"
    HIGH = "high"


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Point(enum.Enum):
    ORIGIN = (0, 0)
    CORNER = (1, 1)


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


# --- pydantic ---------------------------------------------------------------------------------


class Address(BaseModel):
    street: str
    city: str = "Berlin"


class Person(BaseModel):
    name: str
    age: int = 0
    address: Address | None = None
    tags: set[str] = set()
    level: Level = Level.LOW
    born: datetime | None = None
    scores: dict[str, float] = {}
    friends: list[Person] = []


class Aliased(BaseModel):
    count: int = Field(0, alias="Count")
    path: str = Field("", validation_alias=AliasPath("deep", 0))
    choice: str = Field("", validation_alias=AliasChoices("a", "b"))


class HoldsAliased(BaseModel):
    inner: Aliased
    many: list[Aliased] = []


class DumpsAliases(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    count: int = Field(0, alias="Count")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    width: int
    height: int

    @computed_field
    @property
    def area(self) -> int:
        return self.width * self.height


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    known: int = 1

    @computed_field
    @property
    def double(self) -> int:
        return 2 * self.known


class Validated(BaseModel):
    """Its validator refuses what was set later, so it can only be taken as it is."""

    amount: int

    @field_validator("amount")
    @classmethod
    def _positive(cls, amount: int) -> int:
        if amount < 0:
            raise ValueError("negative")
        return amount


class Normalised(BaseModel):
    text: str
    _cache: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _accept_text(cls, data: Any) -> Any:
        return {"text": data} if isinstance(data, str) else data


class OwnInit(BaseModel):
    value: int

    def __init__(self, value: int = 0, **more: Any) -> None:
        super().__init__(value=value, **more)


class Tags(RootModel[list[str]]):
    pass


class Box(BaseModel, Generic[T]):
    item: T


IntBox = Box[int]
PersonBox = Box[Person]


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    bark: str = "wuff"


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    messages: list[AnyMessage] = []
    secret: SecretStr = SecretStr("")


class Site(HttpUrl):
    """A URL with restrictions of its own."""

    _constraints = UrlConstraints(max_length=100, allowed_schemes=["http", "https"])


class Links(BaseModel):
    home: AnyUrl
    site: Site | None = None
    files: list[FileUrl] = []
    dsn: PostgresDsn | None = None
    by_name: dict[str, HttpUrl | WebsocketUrl] = {}


class SerializesOneField(BaseModel):
    home: AnyUrl
    sites: list[HttpUrl] = []
    dsn: PostgresDsn | None = None
    number: int = 0

    @field_serializer("number")
    def _text(self, number: int) -> str:
        return str(number)


class SerializesUrls(BaseModel):
    home: Annotated[AnyUrl, PlainSerializer(str)]
    sites: list[HttpUrl] = []
    dsn: PostgresDsn | None = None
    password: Annotated[SecretStr, PlainSerializer(SecretStr.get_secret_value)] = SecretStr("password")

    @field_serializer("dsn")
    def _text(self, dsn: PostgresDsn | None) -> str | None:
        return None if dsn is None else str(dsn)


class SerializesItself(BaseModel):
    home: AnyUrl
    sites: list[HttpUrl] = []
    dsn: PostgresDsn | None = None

    @model_serializer
    def _fields(self) -> dict[str, Any]:
        return {
            "home": str(self.home),
            "sites": [str(site) for site in self.sites],
            "dsn": None if self.dsn is None else str(self.dsn),
        }


class SerializesMore(BaseModel):
    home: AnyUrl
    sites: list[HttpUrl] = []
    dsn: PostgresDsn | None = None

    @model_serializer(mode="wrap")
    def _fields(self, handler: Any) -> dict[str, Any]:
        return handler(self) | {"number": 1}


class Outer(BaseModel):
    class Inner(BaseModel):
        value: int = 0

    class Status(str, enum.Enum):
        OPEN = "open"
        DONE = "done"

    inner: Inner = Inner()
    status: Status = Status.OPEN


class MyMessage(HumanMessage):
    extra_field: int = 0


@pydantic_dataclass
class Validating:
    number: int
    name: str = "x"


# --- dataclasses, named tuples, others --------------------------------------------------------


@dataclass
class Leaf:
    value: Any


@dataclass(frozen=True)
class Frozen:
    x: int
    y: int = 0


@dataclass
class Slotted:
    __slots__ = ("a", "b")
    a: int
    b: list[Any]


@dataclass(kw_only=True)
class Late:
    given: int
    derived: int = field(init=False)

    def __post_init__(self) -> None:
        self.derived = self.given * 2


@dataclass
class Node:
    child: Any = None
    items: list[Any] = field(default_factory=list)


class Pair(NamedTuple):
    left: Any
    right: Any = None


class Names(set):  # type: ignore[type-arg]
    pass


class Queue(deque):  # type: ignore[type-arg]
    pass


class Key(uuid.UUID):
    pass


class Duck:
    """No data type, but something with `dict()`, which LangGraph writes and rebuilds."""

    def __init__(self, **kwargs: Any) -> None:
        CALLS.append("Duck.__init__")

    def dict(self) -> dict[str, Any]:
        return {"a": 1}


class Password:
    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Password) and other._value == self._value

    __hash__ = None  # type: ignore[assignment]


# --- subclasses of Python's own types ---------------------------------------------------------


class Text(str):
    pass


class Count(int):
    pass


class Ratio(float):
    pass


class Blob(bytes):
    pass


class Rows(list):  # type: ignore[type-arg]
    pass


class Table(dict):  # type: ignore[type-arg]
    pass


class Vector(tuple):  # type: ignore[type-arg]
    pass


def labelled(text: str, label: Any) -> Text:
    """A text with an attribute of its own."""
    made = Text(text)
    made.label = label  # type: ignore[attr-defined]
    return made


class Failure(Exception):
    """Its `__init__` takes other arguments than it keeps."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(f"{text}: {code}")
        self.code = code


# --- classes that run code when they are made -------------------------------------------------


@dataclass
class WithPostInit:
    x: int
    seen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.index = {self.x: "x"}


class WithPrivate(BaseModel):
    x: int
    _cache: dict[str, int] = PrivateAttr(default_factory=dict)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)
    _seen: int = PrivateAttr(0)


def private(x: int) -> WithPrivate:
    """A model whose private attributes are not their defaults."""
    made = WithPrivate(x=x)
    made._cache["a"] = 1
    made._seen = 3
    return made


class Factories(BaseModel):
    names: list[str] = Field(default_factory=list)
    made: str = Field(default_factory=lambda: "made")

    @model_validator(mode="after")
    def _check(self) -> Any:
        return self


class Holder(BaseModel):
    """A field that may hold anything comes back with what it held."""

    value: Any


# --- canaries ---------------------------------------------------------------------------------


class Canary:
    """A class that is no data: building it must not happen."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        CALLS.append("Canary.__init__")

    @classmethod
    def make(cls, *args: Any) -> str:
        CALLS.append("Canary.make")
        return "made"


class CanaryModel(BaseModel):
    x: int = 0

    @classmethod
    def make(cls, *args: Any) -> str:
        CALLS.append("CanaryModel.make")
        return "made"


def canary(*args: Any, **kwargs: Any) -> str:
    """A function: calling it must not happen."""
    CALLS.append("canary")
    return "called"


class _Callable:
    def __call__(self, *args: Any, **kwargs: Any) -> str:
        CALLS.append("callable")
        return "called"


canary_object = _Callable()


class WithPath(BaseModel):
    path: pathlib.Path
    encoded: Base64Bytes
