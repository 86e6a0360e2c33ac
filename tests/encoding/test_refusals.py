"""What orjson refuses is encoded after one walk, or is an error that names the path."""

from __future__ import annotations

import enum
import json
import pickle
import sys
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import orjson
import pytest

from asgi_perfkit import EncodeError, Encoder, PerfKitError, dumps


class Key(enum.Enum):
    A = "a"
    TEN = Decimal(10)


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize("number", [2**63 - 1, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**300])
def test_integers_have_all_their_digits(number: int) -> None:
    assert dumps([number]) == b"[%d]" % number
    assert dumps({1: number}) == b'{"1":%d}' % number


def test_an_integer_that_python_does_not_write() -> None:
    with pytest.raises(EncodeError, match=r"\$\[0\] \(int\) .*digits"):
        dumps([10 ** sys.get_int_max_str_digits()])


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "é\ud800"])
def test_lone_surrogates_are_escaped(text: str) -> None:
    """As values and as keys; whole strings beside them stay what they are."""
    found = dumps({"é": text, text: ["é", 2**70]})
    assert json.loads(found) == {"é": text, text: ["é", 2**70]}
    assert "é".encode() in found


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (1, "1"),
        (2**70, str(2**70)),
        (1.5, "1.5"),
        (True, "true"),
        (None, "null"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, tzinfo=timezone.utc), "2026-01-02T00:00:00Z"),
        (Decimal("1.5"), "1.5"),
        (Key.A, "a"),
        (Key.TEN, "10"),
        (Text("a"), "a"),
        (b"a", "YQ=="),
        (timedelta(1), "P1D"),
        ("\ud800", "\ud800"),
        (PurePosixPath("\udc80"), "\udc80"),
    ],
)
def test_keys_become_strings(key: Any, name: str) -> None:
    """As the same values do; what is a string is one in an encoder that converts no keys, too."""
    assert json.loads(dumps([{key: {key: 1}}])) == [{name: {name: 1}}]
    strict = Encoder(non_str_keys="error")
    if isinstance(key, str):
        assert json.loads(strict.dumps({key: 1})) == {name: 1}
    else:
        with pytest.raises(EncodeError, match=r"^\$\.a \(dict\) .*is no string: make it one"):
            strict.dumps({"a": {key: 1}})


def test_keys_take_no_walk_where_orjson_makes_strings_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless two of them may be the same, or what is written is not as orjson would write it."""
    encoder = Encoder()
    walked: list[object] = []
    walk = encoder._walked
    monkeypatch.setattr(encoder, "_walked", lambda obj, kept: walked.append(obj) or walk(obj, kept))
    fast = {1: [Decimal("1.0")], UUID(int=1): {None: {True: 1.5}}}
    assert json.loads(encoder.dumps(fast)) == {
        "1": ["1.0"],
        str(UUID(int=1)): {"null": {"true": 1.5}},
    }
    assert walked == []
    for slow, json_ in (
        ({Decimal(1): 1}, b'{"1":1}'),
        ({1: orjson.Fragment(b"1.50")}, b'{"1":1.50}'),
        ({1: orjson.Fragment(b"NaN")}, b'{"1":NaN}'),
        ({1: 2**70}, b'{"1":%d}' % 2**70),
    ):
        walked.clear()
        assert encoder.dumps(slow) == json_
        assert walked == [slow]


def test_a_custom_encoder_makes_keys_too() -> None:
    encoder = Encoder(custom_encoders={Key: lambda key: key.name})
    assert encoder.dumps({Key.TEN: Key.TEN}) == b'{"TEN":"TEN"}'


@pytest.mark.parametrize(
    "other", [{1: 1, "1": 2}, {"1": 2, 1: 1}, {None: 1, "null": 2}, {Decimal(1): 1, "1": 2}]
)
def test_keys_that_are_the_same_in_json_are_an_error(other: dict[Any, Any]) -> None:
    """One of the two values would be lost."""
    with pytest.raises(EncodeError, match=r'^\$\.x\[0\] \(dict\) .*two of its keys are "'):
        dumps({"x": [other]})


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ((1, 2), r"its key \(1, 2\) is not a single value"),
        (frozenset([1]), "is not a single value"),
        (object, r"its key <class 'object'> cannot be encoded: it is a class"),
        ("k" * 3 and (1,) * 100, r"\.\.\. is not a single value"),
    ],
)
def test_keys_that_are_no_single_value_are_an_error(key: Any, remedy: str) -> None:
    with pytest.raises(EncodeError, match=remedy) as caught:
        dumps({"a": [{key: 1}]})
    assert caught.value.path == "$.a[0]"
    assert len(caught.value.remedy) < 200


class Broken(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta | None:
        raise LookupError("no such zone")


def test_a_time_zone_that_raises() -> None:
    for value in (datetime(2026, 1, 2, tzinfo=Broken()), time(1, 2, tzinfo=Broken())):
        with pytest.raises(EncodeError, match=r"^\$\[1\] \(datetime\.(date)?time\) "):
            dumps([2**70, value])


def test_a_time_that_orjson_writes_wrong() -> None:
    """Some versions drop a zero of its fraction; an encoder of one's own goes around it, as a walk does."""
    clock = time(1, 2, 3, 10_000)
    assert dumps([clock, 2**70]) == b'["01:02:03.010000",%d]' % 2**70
    encoder = Encoder(custom_encoders={time: time.isoformat})
    assert encoder.dumps([clock, date(2026, 1, 2)]) == b'["01:02:03.010000","2026-01-02"]'


# ---- depth and cycles


def nested(depth: int) -> Any:
    value: Any = "end"
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


@pytest.mark.parametrize("depth", [99, 100, 101, 199, 200, 254, 255, 300, 400])
def test_deep_values(depth: int) -> None:
    value = nested(depth)
    assert json.loads(dumps(value)) == value
    assert json.loads(dumps({1: value})) == {"1": value}


def test_too_deep_values_are_an_error_whose_message_is_short() -> None:
    with pytest.raises(EncodeError, match=r"levels are too many") as caught:
        dumps(nested(5000))
    assert len(str(caught.value)) < 400
    assert isinstance(caught.value.__cause__, RecursionError)
    assert dumps([1]) == b"[1]"


def test_cycles_are_an_error_that_names_what_contains_itself() -> None:
    inner: dict[str, Any] = {}
    inner["back"] = [inner]
    with pytest.raises(EncodeError, match=r"^\$\.a\[1\] \(dict\) .*it contains itself"):
        dumps({"a": [1, inner]})


def test_the_same_value_twice_is_no_cycle() -> None:
    twice = [1]
    assert dumps({1: twice, 2: twice}) == b'{"1":[1],"2":[1]}'
    price = Decimal(1)
    assert dumps({1: price, 2: [price, {3: price}]}) == b'{"1":"1","2":["1",{"3":"1"}]}'


# ---- numbers that JSON has not

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "null", "string"),
    [
        ([NAN, INF, -INF], b"[null,null,null]", b'["NaN","Infinity","-Infinity"]'),
        ([None, 1.5], b"[null,1.5]", b"[null,1.5]"),
        ({"null": 1.5}, b'{"null":1.5}', b'{"null":1.5}'),
        ({NAN: 1}, b'{"null":1}', b'{"NaN":1}'),
        ((each for each in [NAN]), b"[null]", b'["NaN"]'),
    ],
)
def test_numbers_that_json_has_not(value: Any, null: bytes, string: bytes) -> None:
    value = list(value) if isinstance(value, Iterator) else value
    assert dumps(value) == null
    assert Encoder(nan="string").dumps(value) == string
    if isinstance(value, list):
        assert Encoder(nan="string").dumps(iter(value)) == string
    strict = Encoder(nan="error")
    if null == string:
        assert strict.dumps(value) == null
    else:
        with pytest.raises(EncodeError, match=r"JSON has no nan"):
            strict.dumps(value)


# ---- iterators give what they have once


def test_an_iterator_is_read_once_though_it_takes_two_attempts() -> None:
    """It stands before, or after, what orjson refuses; and twice in the same value."""
    numbers = iter([1, 2])
    assert dumps([numbers, {1: 2}]) == b'[[1,2],{"1":2}]'
    assert dumps([{1: 2}, iter([1, 2])]) == b'[{"1":2},[1,2]]'
    numbers = iter([1, iter([2])])
    assert dumps([numbers, numbers, 2**70]) == b"[[1,[2]],[1,[2]],%d]" % 2**70


def test_iterators_that_go_at_once_are_not_mistaken_for_each_other() -> None:
    """Each is told by its identity, which the next would take over."""

    class Unknown:
        def __init__(self, number: int) -> None:
            self.number = number

    encoder = Encoder(custom_encoders={Unknown: lambda unknown: iter([unknown.number])})
    values = [Unknown(number) for number in range(50)]
    for rest in (1, {1: 2}, 2**70):
        found = json.loads(encoder.dumps([values, rest]))[0]
        assert found == [[number] for number in range(50)]


def failing() -> Iterator[int]:
    yield 1
    raise LookupError("lost the connection")


@pytest.mark.parametrize("rest", [1, {1: 2}])
def test_an_iterator_that_raises(rest: object) -> None:
    """It is an error, and not the shorter list that it would be at the second attempt."""
    with pytest.raises(
        EncodeError, match=r"^\$\.a\[1\] \(generator\) .*LookupError: lost"
    ) as caught:
        dumps({"a": [rest, failing()]})
    assert isinstance(caught.value.__cause__, LookupError)


# ---- the error


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "$"),
        ([object()], "$[0]"),
        ({"a": {"b c": [{'"': object()}]}}, '$.a["b c"][0]["\\""]'),
        ({1: [1, 2, {"é": object()}]}, '$["1"][2].é'),
        ({"a": ["x", {"b": 1}, {"c": {"d": object()}}]}, "$.a[2].c.d"),
    ],
)
def test_the_path(value: Any, path: str) -> None:
    with pytest.raises(EncodeError) as caught:
        dumps(value)
    assert caught.value.path == path
    assert caught.value.type_name == "object"


def test_the_error_says_where_what_and_why_and_survives_pickling() -> None:
    with pytest.raises(EncodeError) as caught:
        dumps({"items": [{"price": 1j}]})
    error = caught.value
    assert isinstance(error, PerfKitError)
    assert isinstance(error, TypeError)
    assert str(error) == (
        "$.items[0].price (complex) cannot be encoded: "
        "there is no JSON for it; say what it is: Encoder(custom_encoders={complex: ...})."
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is EncodeError
    assert str(copy) == str(error)
    assert (copy.path, copy.type_name, copy.remedy) == (
        "$.items[0].price",
        "complex",
        error.remedy,
    )


def test_a_fragment_that_orjson_refuses() -> None:
    with pytest.raises(EncodeError, match=r"^\$\[0\] \(orjson\.Fragment\) .*orjson says: "):
        dumps([orjson.Fragment("\ud800")])
