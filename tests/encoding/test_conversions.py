"""What becomes what: the standard library, and the libraries whose classes are known by their marks."""

from __future__ import annotations

import array
import asyncio
import collections
import datetime as dt
import enum
import functools
import io
import ipaddress
import re
import subprocess
import sys
import types
import uuid
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field, make_dataclass
from decimal import Decimal
from pathlib import Path, PureWindowsPath
from typing import Any, ClassVar, NamedTuple

import attrs
import msgspec
import numpy as np
import orjson
import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from asgi_perfkit import EncodeError, Encoder, dumps
from asgi_perfkit.encoding.encoder import default_encoder

UTC = dt.timezone.utc


class Point(NamedTuple):
    x: int
    y: int


class Level(enum.IntEnum):
    LOW = 1


class Name(str, enum.Enum):
    ANN = "ann"


class Price(enum.Enum):
    CHEAP = Decimal("1.5")


class DriversUUID(uuid.UUID):
    """As that of asyncpg."""


class OddDuration(dt.timedelta):
    """As that of pendulum, which has weeks and days that are not in the weeks."""

    days = property(lambda self: 0)  # type: ignore[assignment]


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Number(int):
    pass


class Ratio(float):
    pass


class Moment(dt.datetime):
    pass


class Day(dt.date):
    pass


class Clock(dt.time):
    pass


def numbers() -> Iterator[int]:
    yield 1
    yield 2


@pytest.mark.parametrize(
    ("value", "json_"),
    [
        (Decimal("1.50"), '"1.50"'),
        (Decimal("NaN"), '"NaN"'),
        ({1}, "[1]"),
        (frozenset("a"), '["a"]'),
        (collections.deque([1, {2}]), "[1,[2]]"),
        (range(3), "[0,1,2]"),
        (array.array("i", [1]), "[1]"),
        ({"a": 1}.keys(), '["a"]'),
        ({"a": 1}.values(), "[1]"),
        ({"a": 1}.items(), '[["a",1]]'),
        (b"\xff\x00", '"/wA="'),
        (bytearray(b"a"), '"YQ=="'),
        (memoryview(b"a"), '"YQ=="'),
        (memoryview(b"a-")[::2], '"YQ=="'),
        (Path("/a/b"), '"/a/b"'),
        (PureWindowsPath("c:\\a"), '"c:\\\\a"'),
        (ipaddress.ip_address("127.0.0.1"), '"127.0.0.1"'),
        (ipaddress.ip_network("::/8"), '"::/8"'),
        (ipaddress.ip_interface("10.0.0.1/8"), '"10.0.0.1/8"'),
        (re.compile("a+"), '"a+"'),
        (dt.timedelta(0), '"PT0S"'),
        (dt.timedelta(days=1), '"P1D"'),
        (dt.timedelta(days=400, hours=25, minutes=1), '"P401DT1H1M"'),
        (dt.timedelta(seconds=1, microseconds=500), '"PT1.0005S"'),
        (-dt.timedelta(seconds=90), '"-PT1M30S"'),
        (OddDuration(days=1, hours=2), '"P1DT2H"'),
        (dt.datetime(2026, 1, 2, tzinfo=UTC), '"2026-01-02T00:00:00Z"'),
        (dt.datetime(2026, 1, 2, 3, 4, 5, 6), '"2026-01-02T03:04:05.000006"'),  # noqa: DTZ001
        (Moment(2026, 1, 2, tzinfo=UTC), '"2026-01-02T00:00:00Z"'),
        (Day(2026, 1, 2), '"2026-01-02"'),
        (Clock(1, 2), '"01:02:00"'),
        (dt.time(1, 2, tzinfo=UTC), '"01:02:00Z"'),
        (dt.time(1, 2, tzinfo=dt.timezone(-dt.timedelta(minutes=90))), '"01:02:00-01:30"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (DriversUUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Level.LOW, "1"),
        (Name.ANN, '"ann"'),
        (Price.CHEAP, '"1.5"'),
        (Text("a"), '"a"'),
        (Number(5), "5"),
        (Ratio(1.5), "1.5"),
        (Point(1, 2), "[1,2]"),
        (collections.OrderedDict(a=1), '{"a":1}'),
        (collections.Counter("a"), '{"a":1}'),
        (collections.ChainMap({"a": 1}), '{"a":1}'),
        (types.MappingProxyType({"a": 1}), '{"a":1}'),
        (collections.UserDict(a=1), '{"a":1}'),
        (collections.UserList([1]), "[1]"),
        (collections.UserString("a"), '"a"'),
        (float("nan"), "null"),
        (orjson.Fragment(b"[1]"), "[1]"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_the_standard_library(value: Any, json_: str) -> None:
    """Alone, and beside what needs a walk: the same."""
    assert dumps(value).decode() == json_
    assert dumps({1: value}).decode() == f'{{"1":{json_}}}'


@pytest.mark.parametrize("make", [numbers, lambda: map(int, "12"), lambda: iter([1, 2])])
def test_iterators(make: Callable[[], Iterator[int]]) -> None:
    assert dumps(make()) == b"[1,2]"
    assert dumps({1: make()}) == b'{"1":[1,2]}'


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (object(), r"Encoder\(custom_encoders=\{object: \.\.\.\}\)"),
        (1j, r"custom_encoders=\{complex: \.\.\.\}"),
        (ValueError("secret"), r"give str\(error\)"),
        (numbers, r"it is a function: call it \(numbers\(\.\.\.\)\)"),
        (Path("/").exists, "it is a function"),
        (Point, "it is a class, not an instance"),
        (io.BytesIO(b"a"), "it is a file: read it"),
        ((x async for x in asyncio.StreamReader.__new__(asyncio.StreamReader)), "asynchronous"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_json_says_what_to_do(value: Any, remedy: str) -> None:
    with pytest.raises(
        EncodeError, match=rf"^\$\.items\[1\]\.x \(.*\) cannot .*{remedy}"
    ) as caught:
        dumps({"items": [1, {"x": value}]})
    assert "secret" not in str(caught.value)


def test_a_coroutine_that_was_forgotten() -> None:
    async def fetch() -> None: ...

    coroutine = fetch()
    with pytest.raises(EncodeError, match=r"was not awaited: await .*fetch\(\.\.\.\)"):
        dumps(coroutine)
    coroutine.close()


# ---- classes with fields


@dataclass
class Data:
    a: int
    _b: int = 2
    c: ClassVar[int] = 3
    d: InitVar[int] = 4
    e: list[int] = field(default_factory=list)

    def __post_init__(self, d: int) -> None:
        self.password = "secret"

    @functools.cached_property
    def cached(self) -> str:
        return "secret"


@dataclass(slots=True)
class Slots:
    a: int
    _b: int = 2


@dataclass
class PlainData:
    a: int
    _b: int = 2


@dataclass(slots=True)
class Inheriting(PlainData):
    c: int = 3


@attrs.define
class Attrs:
    a: int
    _b: int = 2


@attrs.define(slots=False)
class AttrsDict:
    a: int
    _b: int = 2


class Struct(msgspec.Struct):
    a: int
    _b: int = 2


Made = attrs.make_class("Made", {"a": attrs.field(), "_b": attrs.field(default=2)}, slots=True)


@pytest.mark.parametrize("cls", [Slots, PlainData, Attrs, AttrsDict, Struct, Made])
def test_fields_are_all_that_are_declared(cls: Callable[[int], Any]) -> None:
    """Those with an underscore, too, as with `asdict`; alone, many, and beside what needs a walk."""
    assert dumps(cls(1)) == b'{"a":1,"_b":2}'
    assert dumps([cls(1)] * 9) == b"[" + b",".join([b'{"a":1,"_b":2}'] * 9) + b"]"
    assert dumps({1: cls(1)}) == b'{"1":{"a":1,"_b":2}}'
    assert dumps([cls(1), *[{}] * 8, 2]) == b'[{"a":1,"_b":2}' + b",{}" * 8 + b",2]"


@dataclass(slots=True)
class MoreSlots(Slots):
    c: int = 3


def test_a_list_whose_first_is_of_another_class() -> None:
    """A subclass has all that the first one has, and more."""
    assert dumps([*[Slots(1)] * 8, MoreSlots(2)]).endswith(b',{"a":2,"_b":2,"c":3}]')
    assert dumps({"items": [*[Slots(1)] * 8, MoreSlots(2)]}).endswith(b'{"a":2,"_b":2,"c":3}]}')


@pytest.mark.parametrize("cls", [Slots, PlainData, Attrs, AttrsDict, Made])
def test_many_become_dicts_in_one_go(cls: Any) -> None:
    record = default_encoder.find(cls).record
    assert record is not None
    assert record.many([cls(1), cls(2), None], cls) == [{"a": 1, "_b": 2}, {"a": 2, "_b": 2}]


def test_an_exception_with_fields_is_an_exception() -> None:
    for make in (dataclass, attrs.define):

        @make
        class Failure(Exception):
            password: str

        with pytest.raises(EncodeError, match=r"give str\(error\)"):
            dumps([Failure("secret")])


def test_an_attribute_that_is_no_field_stays_away() -> None:
    data = Data(1)
    assert data.cached == "secret"
    for value in (data, [data] * 9, {1: data}):
        assert b"secret" not in dumps(value)
    assert dumps(data) == b'{"a":1,"_b":2,"e":[]}'
    assert dumps(Inheriting(1)) == b'{"a":1,"_b":2,"c":3}'


def test_a_field_that_is_not_set_is_an_error() -> None:
    @dataclass(slots=True)
    class Unset:
        a: int = field(init=False)

    @dataclass
    class UnsetInDict:
        a: int = field(init=False)

    for cls in (Unset, UnsetInDict):
        for value in ([cls()], [cls()] * 9):
            with pytest.raises(EncodeError, match=r"\$\[0\] .*AttributeError") as caught:
                dumps(value)
            assert isinstance(caught.value.__cause__, AttributeError)


def test_a_field_that_a_property_or_a_descriptor_gives() -> None:
    """It has its own name, and not that of the attribute where the value is kept."""

    @dataclass
    class Upper:
        name: str

    name = property(
        lambda self: self._name.upper(), lambda self, name: vars(self).update(_name=name)
    )
    Upper.name = name  # type: ignore[assignment]
    for value in ([Upper("ann")], [Upper("ann")] * 9):
        assert dumps(value) == b"[%b]" % b",".join([b'{"name":"ANN"}'] * len(value))


def test_a_name_that_is_no_name_in_python() -> None:
    cls = make_dataclass("Odd", ["a", "b"], slots=True)
    cls.__dataclass_fields__["b"].name = "class"
    with pytest.raises(EncodeError, match="has no attribute 'class'"):
        dumps(cls(1, 2))


def test_a_list_of_many_classes() -> None:
    values = [PlainData(1), Slots(2), Attrs(3), PlainData(4), None, Decimal(5)] * 3
    json_ = b'{"a":1,"_b":2},{"a":2,"_b":2},{"a":3,"_b":2},{"a":4,"_b":2},null,"5"'
    assert dumps(values) == b"[" + b",".join([json_] * 3) + b"]"


def test_raw_json_and_iterators_in_structs() -> None:
    class Holding(msgspec.Struct):
        rest: Any

    raw = msgspec.Raw(b'{"a":[null]}')
    for nan in ("null", "string"):
        encoder = Encoder(nan=nan)  # type: ignore[arg-type]
        assert encoder.dumps([raw, Holding(raw)]) == b'[{"a":[null]},{"rest":{"a":[null]}}]'
    for value in ([Holding(iter([1]))], [Holding(iter([1]))] * 9):
        with pytest.raises(EncodeError, match=r"\$\[0\] .*Holding.* an iterator inside of"):
            dumps(value)


def test_structs_are_as_msgspec_has_them() -> None:
    class Tagged(msgspec.Struct, tag="t", rename="camel", omit_defaults=True):
        the_number: int
        rest: Any = None
        when: dt.datetime | None = None

    class Unknown:
        pass

    encoder = Encoder(custom_encoders={Unknown: lambda _: PlainData(1)})
    value = Tagged(1, [Unknown(), Ratio(0.5)], dt.datetime(2026, 1, 1, tzinfo=UTC))
    json_ = b'{"type":"t","theNumber":1,"rest":[{"a":1,"_b":2},0.5],"when":"2026-01-01T00:00:00Z"}'
    assert encoder.dumps(value) == json_
    assert encoder.dumps({1: value}) == b'{"1":%b}' % json_
    nan = Tagged(1, [float("nan"), Unknown()])
    assert Encoder(nan="string", custom_encoders={Unknown: str}).dumps(
        Tagged(1, [float("nan")])
    ) == (b'{"type":"t","theNumber":1,"rest":["NaN"]}')
    with pytest.raises(EncodeError, match=r"\$\.x .*custom_encoders=\{"):
        dumps({"x": nan})


# ---- SQLAlchemy


class Base(orm.DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    email: orm.Mapped[str | None] = orm.mapped_column("e_mail", default=None)
    notes: orm.Mapped[str | None] = orm.mapped_column(deferred=True, default=None)
    posts: orm.Mapped[list[Post]] = orm.relationship(back_populates="user")


class Post(Base):
    __tablename__ = "posts"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    user_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("users.id"))
    user: orm.Mapped[User] = orm.relationship(back_populates="posts")


@pytest.fixture
def session() -> Iterator[orm.Session]:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(User(id=1, name="Ann", posts=[Post(id=1)]))
        session.commit()
        session.expunge_all()
        yield session
    engine.dispose()


def test_sqlalchemy_rows(session: orm.Session) -> None:
    """Rows are objects by the names of their columns; a result is read to its end."""
    query = sa.select(User.id, User.name.label("n"))
    row = session.execute(query).one()
    other = session.execute(sa.select(User.name, User.id)).one()
    json_ = b'{"id":1,"n":"Ann"}'
    assert dumps(row) == json_
    assert dumps(row._mapping) == json_
    assert dumps([row] * 9) == b"[" + b",".join([json_] * 9) + b"]"
    assert dumps([row] * 8 + [other]).endswith(b',{"name":"Ann","id":1}]')
    assert dumps(session.execute(query)) == b"[" + json_ + b"]"
    assert dumps(session.execute(sa.select(User)).all()).startswith(b'[{"User":{"id":1,')


def test_sqlalchemy_rows_by_what_is_public(session: orm.Session) -> None:
    """What is not public may go: then it takes longer."""
    row = session.execute(sa.select(User.id)).one()

    class Row(sa.Row):  # type: ignore[type-arg]
        __slots__ = ()
        _parent = property(lambda self: None)  # type: ignore[assignment]

        def _asdict(self) -> dict[str, Any]:
            return {"public": True}

    Row.__module__ = type(row).__module__
    other = Row.__new__(Row)
    assert dumps([other, other]) == b'[{"public":true},{"public":true}]'


def test_sqlalchemy_objects(session: orm.Session) -> None:
    """Columns by the names of their attributes: no relationship, and nothing that was deferred; no query for them."""
    user = session.scalars(sa.select(User)).one()
    assert len(user.posts) == 1
    queries: list[str] = []
    sa.event.listen(session.bind, "before_cursor_execute", lambda *args: queries.append(args[2]))
    json_ = b'{"id":1,"name":"Ann","email":null}'
    assert dumps([user]) == b"[%b]" % json_
    assert queries == []
    assert user.notes is None
    assert dumps(user) == json_[:-1] + b',"notes":null}'
    session.commit()
    assert dumps(user) == json_, "expired by the commit, and loaded again"
    session.commit()
    session.expunge(user)
    with pytest.raises(EncodeError, match=r"\$\.u .*DetachedInstanceError"):
        dumps({"u": user})
    new = User(name="New")
    assert dumps(new) == b'{"id":null,"name":"New","email":null,"notes":null}'
    session.add(new)
    session.commit()
    session.refresh(new)
    queries.clear()
    assert dumps(new) == b'{"id":2,"name":"New","email":null}'
    assert queries == []


# ---- numpy and pandas


@pytest.mark.parametrize(
    ("value", "json_"),
    [
        (np.float64(1.5), "1.5"),
        (np.float32(0.1), "0.1"),
        (np.int8(-1), "-1"),
        (np.bool_(True), "true"),
        (np.str_("a"), '"a"'),
        (np.longdouble(1.5), "1.5"),
        (np.datetime64("2026-01-02", "ns"), '"2026-01-02T00:00:00"'),
        (np.datetime64("2026-01-02"), '"2026-01-02T00:00:00"'),
        (np.datetime64("NaT", "s"), "null"),
        (np.datetime64("10000-01-01"), '"10000-01-01"'),
        (np.timedelta64(5, "s"), '"PT5S"'),
        (np.arange(6).reshape(2, 3), "[[0,1,2],[3,4,5]]"),
        (np.arange(6)[::2], "[0,2,4]"),
        (np.array([0.1, np.nan], dtype="f4"), "[0.1,null]"),
        (np.array([0.1, 0.2, 0.3], dtype="f4")[::2], "[0.1,0.3]"),
        (np.array(["2026-01-02", "NaT"], dtype="M8[ns]"), '["2026-01-02T00:00:00",null]'),
        (np.array([["2026-01-02"]], dtype="M8[s]"), '[["2026-01-02T00:00:00"]]'),
        (np.array([1, "a", None], dtype=object), '[1,"a",null]'),
        (np.array(["a"]), '["a"]'),
        (np.array(5), "5"),
        (np.array("2026-01-02", dtype="M8[s]"), '"2026-01-02T00:00:00"'),
        (np.array([1], dtype=">i4"), "[1]"),
        (pd.Timestamp("2026-01-02", tz="UTC"), '"2026-01-02T00:00:00Z"'),
        (pd.Timestamp("2026-01-02 03:04:05.000006"), '"2026-01-02T03:04:05.000006"'),
        (pd.Timestamp(1, tz="UTC"), '"1970-01-01T00:00:00.000000001Z"'),
        (pd.NaT, "null"),
        (pd.NA, "null"),
        (pd.Timedelta("1h"), '"PT1H"'),
        (pd.Timedelta(1, "ns"), '"PT0S"'),
    ],
)  # fmt: skip
def test_numpy_and_pandas(value: Any, json_: str) -> None:
    assert dumps(value).decode() == json_
    assert dumps({1: value}).decode() == f'{{"1":{json_}}}'


def test_numbers_that_json_has_not_in_arrays() -> None:
    array_ = np.array([1.5, np.inf])
    assert Encoder(nan="string").dumps([array_]) == b'[[1.5,"Infinity"]]'
    short = np.array([0.1, np.nan], dtype="f4")
    assert Encoder(nan="string").dumps([short, np.float32(0.1)]) == b'[[0.1,"NaN"],0.1]'
    with pytest.raises(EncodeError, match=r"\$\.a\[1\] \(float\) .*JSON has no inf"):
        Encoder(nan="error").dumps({"a": array_})
    times = np.array(["2026-01-02", "NaT"], dtype="M8[s]")
    assert Encoder(nan="error").dumps([times]) == dumps([times])


# ---- Django


def test_django_models_querysets_and_lazy_texts() -> None:
    """In an interpreter of its own, whose settings it may have."""
    program = """
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()
from django.db import connection, models
from django.utils.translation import gettext_lazy
from asgi_perfkit import dumps

class Owner(models.Model):
    name = models.TextField()
    class Meta:
        app_label = "app"

class Item(models.Model):
    name = models.TextField()
    price = models.DecimalField(max_digits=5, decimal_places=2)
    owner = models.ForeignKey(Owner, models.CASCADE)
    file = models.FileField(default="a.txt")
    class Meta:
        app_label = "app"

with connection.schema_editor() as editor:
    editor.create_model(Owner)
    editor.create_model(Item)
ann = Owner.objects.create(name="Ann")
item = Item.objects.create(name="a", price="1.50", owner=ann)
json_ = b'{"id":1,"name":"a","price":"1.50","owner_id":1,"file":"a.txt"}'
assert item.file.name == "a.txt"
assert dumps(item) == json_
assert dumps(Item.objects.get()) == json_
assert dumps(Item.objects.all()) == b"[%b]" % json_
assert dumps(Item.objects.values()) == b"[%b]" % json_
assert dumps({1: Item.objects.values_list("id", "name")}) == b'{"1":[[1,"a"]]}'
assert dumps(Item.objects.only("name")) == b'[{"id":1,"name":"a"}]'
assert dumps(gettext_lazy("text")) == b'"text"'
"""
    ran = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_django_models_by_their_mark() -> None:
    """What is loaded of the fields, and nothing else that the instance has."""

    class Item:
        _meta = types.SimpleNamespace(
            concrete_fields=[
                types.SimpleNamespace(attname=name) for name in ("id", "owner_id", "n")
            ]
        )

    item = Item()
    item.__dict__.update(_state=object(), id=1, owner_id=2)
    assert dumps([item]) == b'[{"id":1,"owner_id":2}]'


def test_other_classes_with_a_meta() -> None:
    class Peewee:
        _meta = object()

    with pytest.raises(EncodeError, match="there is no JSON for it"):
        dumps(Peewee())
