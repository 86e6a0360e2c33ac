"""pydantic: the same JSON as `model_dump_json`, whichever way it is made."""

from __future__ import annotations

import dataclasses
import enum
import functools
import ipaddress
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
import pydantic_core
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, RootModel, SecretStr, TypeAdapter

from asgi_perfkit import EncodeError, Encoder, dumps
from asgi_perfkit.encoding.models import prove

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


class Plain(BaseModel):
    number: int
    text: str = "text"
    ratio: float | None = 0.5
    flag: bool = True
    made: datetime = datetime(2026, 1, 2, 3, 4, 5, 6, timezone.utc)
    until: datetime | None = None
    day: date = date(2026, 1, 2)
    hour: time = time(1, 2, 3)
    key: UUID = UUID(int=1)
    color: Color = Color.RED
    price: Decimal = Decimal("1.50")
    kind: Literal["a", "b", 3] = "a"
    tags: list[str] = ["a"]
    scores: dict[str, float | None] = {"x": 1.0}
    unique: set[int] = {1}
    pair: tuple[int, str] = (1, "a")
    many: tuple[int, ...] = ()


class Child(BaseModel):
    number: int


class Grandchild(Child):
    secret: str = "secret"


class Parent(BaseModel):
    child: Child
    maybe: Child | None = None
    children: list[Child] = []
    by_name: dict[str, Child] = {}


class Tree(BaseModel):
    name: str
    branches: list[Tree] = []


class Left(BaseModel):
    right: Right | None = None


class Right(BaseModel):
    left: Left | None = None


class Validated(BaseModel):
    number: Annotated[int, pydantic.AfterValidator(lambda number: number + 1)]

    @pydantic.model_validator(mode="after")
    def check(self) -> Validated:
        return self


class Configured(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, str_strip_whitespace=True, title="T")
    number: int


class Private(BaseModel):
    number: int
    _secret: str = "secret"


class Generic_(BaseModel, Generic[T]):  # noqa: N801
    value: T


class Aliased(BaseModel):
    number: int = Field(alias="theNumber")


class AliasedByConfig(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    number: int = Field(serialization_alias="theNumber")


class Excluding(BaseModel):
    number: int
    secret: str = Field("secret", exclude=True)


class Computed(BaseModel):
    number: int

    @pydantic.computed_field
    def double(self) -> int:
        return self.number * 2


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")
    number: int


class FieldSerializer(BaseModel):
    number: int

    @pydantic.field_serializer("number")
    def as_text(self, number: int) -> str:
        return f"<{number}>"


class ModelSerializer(BaseModel):
    number: int

    @pydantic.model_serializer(mode="wrap")
    def wrapped(self, handler: Any) -> Any:
        return {"wrapped": handler(self)}


class AnnotatedChild(BaseModel):
    child: Annotated[Child, pydantic.PlainSerializer(lambda child: child.number)]
    children: list[Annotated[Child, pydantic.PlainSerializer(lambda child: child.number)]]


class Bytes(BaseModel):
    data: bytes


class Base64Bytes(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64")
    data: bytes


class Duration(BaseModel):
    duration: timedelta


class DurationSeconds(BaseModel):
    model_config = ConfigDict(ser_json_timedelta="float")
    duration: timedelta


class Infinite(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")
    number: float


class Anything(BaseModel):
    value: Any
    values: dict[str, Any] = {}


class Complex(enum.Enum):
    ONE = b"one"


class ByEnum(BaseModel):
    value: Complex = Complex.ONE


class LiteralEnum(BaseModel):
    value: Literal[Complex.ONE] = Complex.ONE


class Keys(BaseModel):
    keys: dict[int, str] = {1: "a"}


class ModelKeys(BaseModel):
    keys: dict[int, Child] = {1: Child(number=1)}


class Others(BaseModel):
    path: Path = Path("/a")
    url: AnyUrl = AnyUrl("https://example.org/a")
    secret: SecretStr = SecretStr("secret")
    address: ipaddress.IPv4Address = ipaddress.ip_address("127.0.0.1")
    keys: dict[int, str] = {1: "a"}


class Overriding(BaseModel):
    number: int

    def model_dump_json(self, **options: Any) -> str:
        return f'{{"overridden":{self.number}}}'


class HoldingOverriding(BaseModel):
    inner: Overriding


class LooseDefaults(BaseModel):
    """pydantic does not validate them, and writes 0 as 0.0."""

    ratio: float = 0
    maybe: float | None = 1
    number: int = True
    ratios: list[float] = [1]
    by_name: dict[str, float] = {"x": 1}
    many: tuple[float, ...] = (1.5, 2)


class Cached(BaseModel):
    number: int

    @functools.cached_property
    def secret(self) -> str:
        return "secret"


Root = RootModel[list[int]]


@pydantic.dataclasses.dataclass
class PydanticDataclass:
    number: int
    secret: str = Field("secret", exclude=True)


def expected(model: Any) -> bytes:
    if isinstance(model, BaseModel):
        return model.model_dump_json().encode()
    return TypeAdapter(type(model)).dump_json(model)


def cached() -> Cached:
    model = Cached(number=1)
    assert model.secret
    return model


def smuggling() -> Plain:
    model = Plain(number=1)
    object.__setattr__(model, "_secret", "secret")
    return model


def swapped() -> Cached:
    """The field is missing and something else is there: the number is right."""
    model = Cached.model_construct()
    assert model.secret
    return model


LONDON, ODD = ZoneInfo("Europe/London"), timezone(timedelta(minutes=61, seconds=35))
FAST = [
    Plain(number=1),
    Plain(number=2**80, text="\x00é😀", ratio=1e300, until=datetime(2026, 7, 1, tzinfo=LONDON)),
    Plain(number=-1, ratio=float("nan"), color=Color.BLUE, kind=3),
    Parent(child=Child(number=1), maybe=Child(number=2), children=[Child(number=3)] * 3),
    Parent(child=Child(number=1), by_name={"x": Child(number=2)}),
    Tree(name="a", branches=[Tree(name="b", branches=[Tree(name="c")])]),
    Left(right=Right(left=Left())),
    Validated(number=1),
    Configured(number=1),
    Private(number=1),
    Generic_[int](value=1),
    Generic_[Child](value=Child(number=1)),
]
SLOW = [
    Aliased(theNumber=1),
    AliasedByConfig(number=1),
    Excluding(number=1),
    Computed(number=1),
    Extra(number=1, more=2),
    FieldSerializer(number=1),
    ModelSerializer(number=1),
    AnnotatedChild(child=Child(number=1), children=[Child(number=2)]),
    Bytes(data=b"\x00a"),
    Base64Bytes(data=b"\xff"),
    Duration(duration=timedelta(days=400, seconds=-1)),
    DurationSeconds(duration=timedelta(seconds=1.5)),
    Infinite(number=float("inf")),
    Anything(value=b"a", values={"x": {1, 2}, "y": Grandchild(number=1)}),
    Others(),
    ByEnum(),
    LiteralEnum(),
    Keys(),
    ModelKeys(),
    Generic_[Any](value=b"a"),
    Generic_(value=b"a"),
    Root([1, 2]),
    PydanticDataclass(1),
    HoldingOverriding(inner=Overriding(number=1)),
    LooseDefaults(),
]
# Of classes that are proved: instances that are not as the schema says.
ODD_ONES = [
    Plain(number=1, made=datetime(1800, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))),
    Plain(number=1, made=datetime(2026, 1, 1, tzinfo=ODD)),
    Plain(number=1, until=datetime(2026, 1, 1, tzinfo=ODD)),
    Plain(number=1, hour=time(1, 2, tzinfo=ODD)),
    Plain(number=1, hour=time(1, 2, tzinfo=timezone.utc)),
    Plain(number=1, hour=time(1, 2, tzinfo=LONDON)),
    Plain(number=1, hour=time(1, 2, 3, 10_000)),
    Plain.model_construct(number=1, text="a"),
    Plain.model_construct(number=1, made=None),
    Parent(child=Grandchild(number=1)),
    Parent(child=Child(number=1), maybe=Grandchild(number=1)),
    Parent(child=Child(number=1), children=[Child(number=1), Grandchild(number=1)]),
    Parent(child=Child(number=1), by_name={"x": Grandchild(number=1)}),
    Parent.model_construct(child=None, children=None),
    cached(),
    smuggling(),
    swapped(),
    Overriding(number=1),
]


def name_of(model: object) -> str:
    return type(model).__name__


def is_proved(cls: type) -> bool:
    return prove(cls, lambda _: False) is not None


@pytest.mark.parametrize("model", [*FAST, *SLOW, *ODD_ONES], ids=name_of)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_the_json_is_that_of_model_dump_json(model: object) -> None:
    """Alone, many in a list, inside of others, and where something else needs a walk."""
    json_ = expected(model)
    assert dumps(model) == json_
    assert dumps([model] * 20) == b"[" + b",".join([json_] * 20) + b"]"
    assert dumps({"items": [model] * 8, "n": 8}) == b'{"items":[%b],"n":8}' % b",".join([json_] * 8)
    assert dumps((model, model)) == b"[%b,%b]" % (json_, json_)
    assert dumps({1: model}) == b'{"1":%b}' % json_


@pytest.mark.parametrize("model", FAST, ids=name_of)
def test_plain_models_are_encoded_the_fast_way(model: object) -> None:
    assert is_proved(type(model))


@pytest.mark.parametrize("model", SLOW, ids=name_of)
def test_what_the_schema_does_not_prove_is_left_to_pydantic(model: object) -> None:
    assert not is_proved(type(model))


def test_what_is_not_known_to_be_equal_is_not_proved() -> None:
    """A kind of field, an option of a field, of a model or of its configuration that a later pydantic may bring."""
    for where in ("field", "field_option", "fields", "model", "config", "type", "cls", "ref"):

        class Model(BaseModel):
            number: int

        assert is_proved(Model), where
        schema: Any = Model.__pydantic_core_schema__
        fields = schema["schema"]
        if where == "field":
            fields["fields"]["number"]["schema"]["type"] = "novel"
        elif where == "type":
            fields["type"] = "novel"
        elif where == "cls":
            schema["cls"] = Plain
        elif where == "ref":
            fields["fields"]["number"]["schema"] = {"type": "definition-ref", "schema_ref": "x"}
        else:
            parts = {
                "field_option": fields["fields"]["number"],
                "fields": fields,
                "model": schema,
                "config": schema["config"],
            }
            parts[where]["novel"] = True
        assert not is_proved(Model), where


@pytest.mark.parametrize(
    ("annotation", "default", "proved"),
    [
        (float, 0, False),
        (float, 0.0, True),
        (float | None, None, True),
        (float | None, True, False),
        (int, True, False),
        (list[int], 5, False),
        (list[float], [0.0, 1], False),
        (list[float], [0.0], True),
        (dict[str, float], {"a": 1}, False),
        (tuple[int, float], (1, 2), False),
        (tuple[int, float], (1, 2.0), True),
        (tuple[float, ...], (1.0, 2.0, 3), False),
        (list[list[float]], [[1]], False),
    ],
)
def test_a_default_of_another_type_is_left_to_pydantic(
    annotation: Any, default: Any, proved: bool
) -> None:
    """Nobody validates it, and pydantic writes the 0 of a float as 0.0."""
    assert is_proved(pydantic.create_model("Model", number=(annotation, default))) is proved


def test_a_model_that_is_not_complete_is_an_error_that_names_the_path() -> None:
    class Incomplete(BaseModel):
        other: Missing  # type: ignore[name-defined]  # noqa: F821

    assert not is_proved(Incomplete)
    with pytest.raises(EncodeError, match=r"\$\[0\] .*Incomplete.* not fully defined") as caught:
        dumps([Incomplete.model_construct(other=1)])
    assert caught.value.__cause__ is not None


def test_what_pydantic_does_not_know_is_encoded_here() -> None:
    """A value of any type: pydantic asks, and gets what the encoder makes of it; its error has the model's path."""

    class Unknown:
        pass

    encoder = Encoder(custom_encoders={Unknown: lambda _: {"known": Decimal(1)}})
    assert encoder.dumps(Anything(value=Unknown())) == b'{"value":{"known":"1"},"values":{}}'
    with pytest.raises(EncodeError, match=r"\$\.a .*Anything"):
        dumps({"a": Anything(value=Unknown())})


def test_aliases_when_they_are_asked_for() -> None:
    model = [Aliased(theNumber=1), Plain(number=1)]
    json_ = b"[%b,%b]" % tuple(each.model_dump_json(by_alias=True).encode() for each in model)
    assert Encoder(by_alias=True).dumps(model) == json_
    assert b"theNumber" in json_
    assert Encoder(by_alias=False).dumps(AliasedByConfig(number=1)) == b'{"number":1}'


def test_custom_encoders_are_for_models_and_not_for_their_fields() -> None:
    """A model says itself how its fields are encoded, the fast way or not; a base may have an encoder, too."""
    encoders: dict[type, Any] = {datetime: str, Decimal: float, UUID: int, Color: repr, set: len}
    encoder = Encoder(custom_encoders=encoders)
    for model in (*FAST, *SLOW):
        assert encoder.dumps([model]) == b"[%b]" % expected(model)
    children = [Child(number=1), Grandchild(number=2)]
    encoder = Encoder(custom_encoders={Child: lambda child: child.number})
    assert encoder.dumps(children * 10) == b"[%b]" % b",".join([b"1,2"] * 10)
    parent = Parent(child=children[0])
    assert encoder.dumps(parent) == expected(parent)


@pytest.mark.parametrize(
    ("nan", "json_"), [("null", b"null"), ("string", b'"NaN"'), ("error", None)]
)
@pytest.mark.parametrize("model", [Plain(number=1), Excluding(number=1)], ids=name_of)
def test_numbers_that_json_has_not_are_found_in_models(
    model: BaseModel, nan: Any, json_: bytes | None
) -> None:
    class Holding(BaseModel):
        ratio: float | None = None
        model: Any

    held = Holding.model_construct(model=model, ratio=float("nan"))
    encoder = Encoder(nan=nan)
    if json_ is None:
        with pytest.raises(EncodeError, match=r"\$\[0\]\.ratio .*JSON has no nan"):
            encoder.dumps([held])
    else:
        assert b'"ratio":' + json_ in encoder.dumps([held])
    assert encoder.dumps(model) == expected(model)


def test_an_iterator_in_a_model_is_never_lost() -> None:
    """The first attempt has used it up: better an error than a list that is empty."""

    class Holding(BaseModel):
        items: Iterable[int]

    assert dumps(Holding(items=iter([1, 2]))) == b'{"items":[1,2]}'
    for count in (1, 20):
        for rest in ({1: 2}, 2**70, iter([1])):
            with pytest.raises(EncodeError, match=r"\$\[0\] .*its items is an iterator"):
                dumps([*[Holding(items=iter([1, 2])) for _ in range(count)], rest])
    many = [Holding(items=iter([1, 2])) for _ in range(20)]
    assert dumps(many) == b"[%b]" % b",".join([b'{"items":[1,2]}'] * 20)
    mixed = [*[Holding(items=iter([1, 2])) for _ in range(20)], Child(number=1)]
    assert dumps(mixed).count(b'{"items":[1,2]}') == 20
    many = [Holding(items=iter([1, 2])) for _ in range(20)]
    with pytest.raises(EncodeError, match="its items is an iterator"):
        dumps({"items": many, 1: 2})


def test_an_iterator_deep_in_a_model_is_not_lost_either() -> None:
    @dataclasses.dataclass(slots=True)
    class Data:
        items: Any

    def numbers() -> Any:
        return iter([1, 2])

    for make in (
        lambda: Anything(value=[numbers()]),
        lambda: Anything(value=1, values={"x": (numbers(),)}),
        lambda: Anything(value=Anything(value=numbers())),
        lambda: Anything(value=Data(numbers())),
        lambda: Extra(number=1, more={"x": numbers()}),
    ):
        assert b"[1,2]" in dumps([make(), 1])
        for rest in ({1: 2}, 2**70, numbers()):
            with pytest.raises(EncodeError, match=r"\$\[0\] .*its \w+ holds an iterator"):
                dumps([make(), rest])
    values = {"x": [{"y": 1}, Data(1)]}
    assert dumps([Anything(value=values), 2**70]).startswith(
        b'[{"value":{"x":[{"y":1},{"items":1}]}'
    )


def test_values_of_pydantic_outside_of_models() -> None:
    values = [AnyUrl("https://example.org/"), SecretStr("x"), pydantic_core.Url("http://a.b/c")]
    assert dumps(values) == b'["https://example.org/","**********","http://a.b/c"]'


# ---- any model

zones = st.one_of(st.none(), st.just(timezone.utc), st.timezones(), st.just(ODD))
moments = st.datetimes(timezones=zones)
values_of_plain = {
    "text": st.text(),
    "ratio": st.none() | st.floats(),
    "flag": st.booleans(),
    "made": moments,
    "until": st.none() | moments,
    "day": st.dates(),
    "hour": st.times(timezones=zones),
    "key": st.uuids(),
    "color": st.sampled_from(Color),
    "price": st.decimals(allow_nan=False, allow_infinity=False),
    "kind": st.sampled_from(["a", "b", 3]),
    "tags": st.lists(st.text()),
    "scores": st.dictionaries(st.text(), st.none() | st.floats()),
    "unique": st.sets(st.integers()),
    "pair": st.tuples(st.integers(), st.text()),
    "many": st.lists(st.integers()).map(tuple),
}
plains = st.fixed_dictionaries({"number": st.integers()}, optional=values_of_plain).map(
    lambda values: Plain(**values)
)
children = st.builds(Child, number=st.integers()) | st.builds(Grandchild, number=st.integers())
parents = st.builds(
    Parent,
    child=children,
    maybe=st.none() | children,
    children=st.lists(children, max_size=4),
    by_name=st.dictionaries(st.text(), children, max_size=3),
)
anything = st.recursive(
    st.none() | st.integers() | st.floats() | st.text() | moments | st.decimals() | plains,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=50)
@given(st.lists(st.one_of(plains, parents, st.builds(Anything, value=anything)), max_size=9))
def test_there_is_no_difference_from_model_dump_json(models: list[BaseModel]) -> None:
    assert dumps(models) == b"[%b]" % b",".join(each.model_dump_json().encode() for each in models)
