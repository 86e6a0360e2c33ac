"""The encoder: plain data at orjson's speed, its options, what it keeps, and which one is taken."""

from __future__ import annotations

import collections.abc
import contextlib
import enum
import gc
import json
import sys
import threading
import types
import weakref
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, time, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_perfkit import ConfigurationError, EncodeError, Encoder, dumps
from asgi_perfkit.encoding.encoder import current_encoder, default_encoder
from asgi_perfkit.steps.account import Account, current_account


class Celsius:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


class Kelvin(Celsius):
    pass


class Color(enum.Enum):
    RED = 1


class Markup(str):
    __slots__ = ()


@dataclass
class Held:
    value: Any


# ---- custom encoders


def test_a_custom_encoder_is_for_subclasses_too() -> None:
    encoder = Encoder(custom_encoders={Celsius: lambda value: value.degrees})
    assert encoder.dumps([Celsius(1.5), Kelvin(2.5)]) == b"[1.5,2.5]"
    encoder = Encoder(
        custom_encoders={Celsius: lambda value: value.degrees, Kelvin: lambda value: "K"}
    )
    assert encoder.dumps([Celsius(1.5), Kelvin(2.5)]) == b'[1.5,"K"]'


def test_a_custom_encoder_goes_before_what_the_class_is() -> None:
    """Even if that is what a subclass is, and its base has the encoder; and where a walk is needed."""

    class Mixin:
        pass

    @dataclass
    class Data(Mixin):
        a: int

    class Model(pydantic.BaseModel, Mixin):
        a: int

    values = [Data(1), Model(a=1), Decimal(1)]
    encoder = Encoder(custom_encoders={Mixin: lambda value: value.a, Decimal: float})
    assert encoder.dumps(values) == b"[1,1,1.0]"
    assert encoder.dumps([Data(1)] * 9) == b"[1,1,1,1,1,1,1,1,1]"
    assert encoder.dumps({1: values}) == b'{"1":[1,1,1.0]}'


@pytest.mark.parametrize(
    ("cls", "value", "json_"),
    [
        (datetime, datetime(2026, 1, 2, tzinfo=timezone.utc), b'"c"'),
        (date, date(2026, 1, 2), b'"c"'),
        (date, datetime(2026, 1, 2, tzinfo=timezone.utc), b'"c"'),
        (time, time(1, 2), b'"c"'),
        (UUID, UUID(int=1), b'"c"'),
        (Color, Color.RED, b'"c"'),
        (enum.Enum, Color.RED, b'"c"'),
        (Markup, Markup("a"), b'"c"'),
        (dict, collections.OrderedDict(a=1), None),
        (collections.OrderedDict, collections.OrderedDict(a=1), b'"c"'),
        (collections.abc.Set, frozenset([1]), b'"c"'),
        (collections.abc.Mapping, collections.ChainMap({}), b'"c"'),
        # One for another class leaves it alone.
        (datetime, date(2026, 1, 2), b'"2026-01-02"'),
        (datetime, time(1, 2), b'"01:02:00"'),
        (time, datetime(2026, 1, 2, tzinfo=timezone.utc), b'"2026-01-02T00:00:00Z"'),
        (Markup, collections.OrderedDict(a=1), b'{"a":1}'),
        (UUID, Color.RED, b"1"),
        (object, Color.RED, b"1"),
        (object, Decimal(1), b'"1"'),
        (object, object(), b'"c"'),
    ],
)
def test_a_custom_encoder_for_what_orjson_knows(cls: Any, value: Any, json_: bytes | None) -> None:
    """It is asked where orjson would not ask of its own; JSON's own types are refused."""
    if json_ is None:
        with pytest.raises(ConfigurationError, match="JSON has this type itself"):
            Encoder(custom_encoders={cls: lambda _: "c"})
        return
    encoder = Encoder(custom_encoders={cls: lambda _: "c"})
    assert encoder.dumps([value]) == b"[%b]" % json_
    assert encoder.dumps({1: value}) == b'{"1":%b}' % json_
    if json_ == b'"c"' and isinstance(value, Hashable):
        assert encoder.dumps({value: 1}) == b'{"c":1}' or isinstance(value, str)


def test_none_is_a_value() -> None:
    assert (
        Encoder(custom_encoders={Celsius: lambda _: None}).dumps({"a": Celsius(1)}) == b'{"a":null}'
    )


def test_what_a_custom_encoder_gives_is_encoded_in_turn() -> None:
    encoder = Encoder(custom_encoders={Celsius: lambda value: Held({value.degrees})})
    assert encoder.dumps(Celsius(1)) == b'{"value":[1]}'


def test_a_custom_encoder_that_raises() -> None:
    def refuse(value: object) -> Any:
        raise LookupError("no such thing")

    encoder = Encoder(custom_encoders={Celsius: refuse})
    for value in ({"items": [1, Celsius(1)]}, {"items": [1, Celsius(1)], 2: 3}):
        with pytest.raises(EncodeError) as caught:
            encoder.dumps(value)
        assert caught.value.path == "$.items[1]"
        assert caught.value.type_name == f"{__name__}.Celsius"
        assert caught.value.remedy == "its encoder raised LookupError: no such thing"
        assert isinstance(caught.value.__cause__, LookupError)


def test_a_custom_encoder_that_gives_the_same_class_for_ever() -> None:
    encoder = Encoder(custom_encoders={Celsius: lambda value: Celsius(value.degrees)})
    with pytest.raises(EncodeError, match="gives what it is asked for again and again"):
        encoder.dumps([Celsius(1)])
    encoder = Encoder(custom_encoders={Celsius: lambda value: value})
    with pytest.raises(EncodeError, match="contains itself"):
        encoder.dumps([Celsius(1)])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_must_not_be_caught_is_not(error: type[BaseException]) -> None:
    def interrupted(value: object) -> Any:
        raise error

    encoder = Encoder(custom_encoders={Celsius: interrupted})
    for value in (Celsius(1), (each for each in [Celsius(1)])):
        with pytest.raises(error):
            encoder.dumps(value)


# ---- configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"custom_encoders": [1]}, r"Encoder\(custom_encoders=\.\.\.\) got \[1\]: give a dict"),
        ({"custom_encoders": {"a": str}}, r"custom_encoders=\.\.\.\) key got 'a': give a class"),
        ({"custom_encoders": {str: str}}, r"key got <class 'str'>: JSON has this type itself"),
        ({"custom_encoders": {Decimal: 1}}, r"\[Decimal\] got 1: give a function"),
        ({"non_str_keys": True}, r"Encoder\(non_str_keys=\.\.\.\) got True: give one of 'convert'"),
        ({"nan": "nil"}, r"Encoder\(nan=\.\.\.\) got 'nil': give one of 'null', 'error', 'string'"),
        ({"by_alias": 1}, r"Encoder\(by_alias=\.\.\.\) got 1: give one of None, True, False"),
    ],
)
def test_a_wrong_argument_fails_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Encoder(**options)


def test_custom_encoders_are_copied() -> None:
    encoders: dict[type, Any] = {Celsius: lambda _: 1}
    encoder = Encoder(custom_encoders=encoders)
    encoders.clear()
    assert encoder.dumps(Celsius(1)) == b"1"


# ---- what it keeps


def make_class(kind: str) -> type:
    if kind == "model":

        class Model(pydantic.BaseModel):
            value: int = 1
            children: list[Model] = []

        Model.model_rebuild()
        return Model

    @dataclass(slots=kind == "slots")
    class Data:
        value: int = 1

    return Data


@pytest.mark.parametrize("kind", ["model", "slots", "data"])
@pytest.mark.parametrize(
    "around",
    [
        lambda x: x,
        lambda x: [x] * 20,
        lambda x: {1: x},
        lambda x: [x, 2**70],
        lambda x: iter([x]),
        lambda x: [x, object()],
    ],
    ids=["one", "many", "keys", "walk", "iterator", "error"],
)
def test_classes_are_not_kept_alive(kind: str, around: Any) -> None:
    """A class that is made at run time goes when its last instance has gone, however it was encoded."""
    cls = make_class(kind)
    alive = weakref.ref(cls)
    encoder = Encoder()
    for each in (encoder, encoder, Encoder(custom_encoders={Celsius: lambda _: 1})):
        with contextlib.suppress(EncodeError):
            each.dumps(around(cls()))
    del cls
    gc.collect()
    assert alive() is None
    assert all(entry[0]() is not None for entry in encoder._known.values())


def test_a_class_that_its_module_has_replaced_is_not_kept_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a reload does it: the old one goes when the new one has come up."""
    module = types.ModuleType("reloaded")
    monkeypatch.setitem(sys.modules, "reloaded", module)
    encoder = Encoder()

    def reload() -> weakref.ref[type]:
        module.Pair = dataclass(  # type: ignore[attr-defined]
            type("Pair", (), {"__module__": "reloaded", "__annotations__": {"a": int}, "a": 1})
        )
        assert encoder.dumps([module.Pair()]) == b'[{"a":1}]'  # type: ignore[attr-defined]
        return weakref.ref(module.Pair)  # type: ignore[attr-defined]

    old, new = reload(), reload()
    gc.collect()
    assert old() is None
    assert new() is not None


def test_a_class_is_decided_once() -> None:
    """And an importable one is found again without a look at weak references."""
    encoder = Encoder()
    decided: list[type] = []
    decide = encoder._decide
    encoder._decide = lambda cls: decided.append(cls) or decide(cls)  # type: ignore[method-assign, func-returns-value]
    for _ in range(3):
        encoder.dumps((Held(Decimal(1)), Held({1})))
    assert decided == [Held, Decimal, set]
    assert encoder._table.keys() == {Held, Decimal, set}


def test_many_threads_at_once() -> None:
    """Classes that are new to the encoder, while others let go of theirs."""
    encoder = Encoder()
    start = threading.Barrier(4)

    def work(_: int) -> None:
        start.wait()
        for _ in range(50):
            cls = make_class("slots")
            found = encoder.dumps((cls(), Held(Decimal(1)), [cls()] * 9))
            assert json.loads(found) == [{"value": 1}, {"value": "1"}, [{"value": 1}] * 9]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


# ---- the ambient encoder


@pytest.fixture
def account() -> Any:
    account = Account()
    token = current_account.set(account)
    yield account
    current_account.reset(token)


def test_outside_of_a_request_the_default_is_taken() -> None:
    assert current_encoder() is default_encoder
    assert dumps({"a": Decimal(1)}) == b'{"a":"1"}'


def test_the_encoder_around_the_app_is_taken(account: Account) -> None:
    """That of the nearest account that has one."""
    assert current_encoder() is default_encoder
    inner = Account()
    inner.parent = account
    current_account.set(inner)
    account.encoder = Encoder(custom_encoders={Celsius: lambda _: "outer"})
    assert current_encoder() is account.encoder
    assert dumps(Celsius(1)) == b'"outer"'
    inner.encoder = Encoder(custom_encoders={Celsius: lambda _: "inner"})
    assert dumps(Celsius(1)) == b'"inner"'


def test_the_time_is_noted_in_a_request(account: Account) -> None:
    dumps(1)
    dumps(2)
    with pytest.raises(EncodeError):
        dumps(object())
    (first, one), (second, two) = account.take_observations()
    assert first == second == "serialization_time"
    assert 0 < one < 10**9
    assert 0 < two < 10**9


# ---- any data

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=50)
@given(plain)
def test_plain_data_is_as_orjson_has_it(value: Any) -> None:
    assert dumps(value) == orjson.dumps(value)
    assert json.loads(dumps(value)) == value


# What is documented: the value that json.loads finds, by the value that was encoded.
converted = st.one_of(
    scalars.map(lambda value: (value, value)),
    st.integers().map(lambda value: (value, value)),
    st.text(st.characters(exclude_categories=[])).map(lambda value: (value, value)),
    st.floats().map(lambda value: (value, value if abs(value) < float("inf") else None)),
    st.decimals().filter(lambda value: not value.is_snan()).map(lambda value: (value, str(value))),
    st.uuids().map(lambda value: (value, str(value))),
    st.dates().map(lambda value: (value, value.isoformat())),
    st.datetimes().map(lambda value: (value, value.isoformat())),
    st.times()
    .filter(lambda value: not 9_999 < value.microsecond < 100_000)
    .map(lambda value: (value, value.isoformat())),
    st.datetimes(timezones=st.just(timezone.utc)).map(
        lambda value: (value, value.isoformat().replace("+00:00", "Z"))
    ),
    st.ip_addresses().map(lambda value: (value, str(value))),
    st.sets(st.integers()).map(lambda value: (value, list(value))),
)


def key_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def together(inner: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    lists = st.lists(inner, max_size=9)
    keys = converted.filter(lambda pair: not isinstance(pair[0], set))
    items = st.lists(st.tuples(keys, inner), max_size=4, unique_by=lambda item: key_of(item[0][1]))
    return st.one_of(
        lists.map(lambda pairs: ([one for one, _ in pairs], [other for _, other in pairs])),
        lists.map(lambda pairs: (tuple(one for one, _ in pairs), [other for _, other in pairs])),
        lists.map(lambda pairs: ((one for one, _ in pairs), [other for _, other in pairs])),
        items.map(
            lambda items: (
                {key: value for (key, _), (value, _) in items},
                {key_of(key): value for (_, key), (_, value) in items},
            )
        ),
        inner.map(lambda pair: (Held(pair[0]), {"value": pair[1]})),
    )


@settings(max_examples=60)
@given(st.recursive(converted, together, max_leaves=6))
def test_nothing_is_changed_beyond_what_is_documented(pair: tuple[Any, Any]) -> None:
    value, expected = pair
    assert json.loads(dumps(value)) == expected
