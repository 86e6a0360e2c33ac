"""Objects to JSON: plain data, models, dataclasses, rows, beside orjson itself and eight others.

The limit for objects is orjson on dicts of the same values, in types that it takes natively; for plain
data it is orjson on the same. What a contender cannot do at all is left out of its table. Each makes
the bytes of the body. What is counted is the thread's processor time: encoding waits for nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from time import thread_time_ns
from typing import Any

import attrs
import msgspec
import orjson
import pydantic
import sqlalchemy
from django.core.serializers.json import DjangoJSONEncoder
from fastapi.encoders import jsonable_encoder
from litestar.serialization import encode_json

from asgi_perfkit import dumps

from .harness import Row, Settings, Spread, Table, Target, interleave, pair

KIT = "dumps"
LIMIT = "orjson, dicts of native types"
ORJSON = "orjson"
JSONABLE = "jsonable_encoder + json"
ROWS = 1000
CREATED = datetime(2026, 1, 2, 3, 4, 5, 678_000, timezone.utc)

Encode = Callable[[Any], object]


class Model(pydantic.BaseModel):
    id: int
    name: str
    price: float
    created: datetime
    key: uuid.UUID


class AliasedModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(populate_by_name=True, serialize_by_alias=True)
    id: int = pydantic.Field(alias="ID")
    name: str
    price: float
    created: datetime
    key: uuid.UUID


class Page(pydantic.BaseModel):
    items: list[Model]


@dataclass
class Data:
    id: int
    name: str
    price: float
    created: datetime
    key: uuid.UUID


@dataclass(slots=True)
class SlotsData:
    id: int
    name: str
    price: float
    created: datetime
    key: uuid.UUID


@attrs.define
class Attrs:
    id: int
    name: str
    price: float
    created: datetime
    key: uuid.UUID


class Struct(msgspec.Struct):
    id: int
    name: str
    price: float
    created: datetime
    key: uuid.UUID


def native_rows(count: int = ROWS) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "name": f"item {number}",
            "price": number * 1.25,
            "created": CREATED + timedelta(seconds=number),
            "key": uuid.UUID(int=number * 2**96 + number),
        }
        for number in range(count)
    ]


def run(settings: Settings) -> Iterator[Table]:
    yield from plain_tables(settings)
    native = native_rows()
    for name, (objects, most, least) in subjects(native).items():
        yield object_table(name, objects, native, most, least, settings)


def subjects(native: list[dict[str, Any]]) -> dict[str, tuple[Any, float | None, float | None]]:
    """By name: the objects, how many times the limit they may take, and how many times faster than jsonable_encoder."""

    def made(cls: Callable[..., Any]) -> list[Any]:
        return [cls(**row) for row in native]

    models = made(Model)
    return {
        "dicts with a Decimal": (
            [{**row, "price": Decimal(str(row["price"]))} for row in native],
            1.6,
            40,
        ),
        "plain pydantic models": (models, 1.5, 18),
        "plain pydantic models, in a dict": ({"items": models, "total": ROWS}, None, 18),
        "plain pydantic models, in a model": (Page(items=models), None, 18),
        "pydantic models with an alias": (made(AliasedModel), 5.0, None),
        "dataclasses": (made(Data), 1.3, 100),
        "dataclasses with slots": (made(SlotsData), 2.1, None),
        "attrs": (made(Attrs), 2.1, None),
        "msgspec Structs": (made(Struct), 1.8, None),
        "SQLAlchemy rows": (sqlalchemy_rows(native), 4.5, None),
        "dicts with integers for keys": ([{1: row} for row in native], None, None),
    }


def sqlalchemy_rows(native: list[dict[str, Any]]) -> list[Any]:
    columns = [
        sqlalchemy.Column("id", sqlalchemy.Integer),
        sqlalchemy.Column("name", sqlalchemy.String),
        sqlalchemy.Column("price", sqlalchemy.Float),
        sqlalchemy.Column("created", sqlalchemy.DateTime),
        sqlalchemy.Column("key", sqlalchemy.Uuid),
    ]
    table = sqlalchemy.Table("rows", sqlalchemy.MetaData(), *columns)
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), native)
        return list(connection.execute(sqlalchemy.select(table)).all())


def contenders() -> dict[str, Encode]:
    response_model = pydantic.TypeAdapter(Any)

    def from_jsonable(obj: Any) -> object:
        return json.dumps(jsonable_encoder(obj)).encode()

    def by_django(obj: Any) -> object:
        return json.dumps(obj, cls=DjangoJSONEncoder).encode()

    return {
        KIT: dumps,
        "orjson, default=str": lambda obj: orjson.dumps(obj, str),
        "json": lambda obj: json.dumps(obj).encode(),
        JSONABLE: from_jsonable,
        "pydantic (FastAPI's response model)": response_model.dump_json,
        "msgspec": msgspec.json.encode,
        "DjangoJSONEncoder": by_django,
        "Litestar's encode_json": encode_json,
    }


# -- plain data --------------------------------------------------------------------------------------------------------


def plain_tables(settings: Settings) -> Iterator[Table]:
    row = {"id": 12, "name": "a name", "price": 12.5, "tags": ["a", "b"], "ok": True, "note": None}
    rows = [dict(row, id=number) for number in range(1200)]
    sizes = {
        "A dict of 80 bytes": row,
        "A list of 1 kB": rows[:13],
        "A dict of 1 kB": {"items": rows[:13], "total": 13, "next": None},
        "A list of 2 kB": rows[:26],
        "A list of 100 kB": rows,
    }
    for name, value in sizes.items():
        size = len(orjson.dumps(value))
        on_top = size < 1000
        encoders = {ORJSON: orjson.dumps, **able(value)}
        del encoders["orjson, default=str"]
        figures = measured({each: (encode, value) for each, encode in encoders.items()}, settings)
        target = None if on_top else Target("<=", 1.1, of="ratio")
        table = compared(name, figures, ORJSON, {KIT: target})
        if on_top:
            more = pair(figures[KIT], figures[ORJSON], lambda one, other: one - other)
            table.rows.append(Row(f"{KIT} - {ORJSON}", Spread.of(more), target=Target("<=", 0.25)))
        table.notes.append(f"{size:,} bytes.")
        yield table


# -- objects -----------------------------------------------------------------------------------------------------------


def object_table(
    name: str,
    objects: Any,
    native: list[dict[str, Any]],
    most: float | None,
    least: float | None,
    settings: Settings,
) -> Table:
    batches = {LIMIT: (orjson.dumps, native)}
    batches.update({each: (encode, objects) for each, encode in able(objects).items()})
    figures = measured(batches, settings)
    target = None if most is None else Target("<=", most, of="ratio")
    table = compared(f"1,000 {name}", figures, LIMIT, {KIT: target})
    if least is not None and JSONABLE in figures:
        faster = pair(figures[JSONABLE], figures[KIT], lambda one, other: one / other)
        table.rows.append(
            Row(
                JSONABLE,
                None,
                Spread.of(faster),
                target=Target(">=", least, of="ratio"),
                against=KIT,
            )
        )
    return table


def able(value: Any) -> dict[str, Encode]:
    """The contenders that can encode `value` at all."""
    found = {}
    for name, encode in contenders().items():
        try:
            encode(value)
        except Exception:
            if name == KIT:
                raise
        else:
            found[name] = encode
    return found


def measured(batches: dict[str, tuple[Encode, Any]], settings: Settings) -> dict[str, list[float]]:
    """Return microseconds for each call, by contender. A batch takes two milliseconds, or as long as one call."""

    def batch(encode: Encode, value: Any) -> Callable[[], float]:
        began = thread_time_ns()
        encode(value)
        calls = max(1, 2_000_000 // (thread_time_ns() - began))

        def timed() -> float:
            began = thread_time_ns()
            for _ in range(calls):
                encode(value)
            return (thread_time_ns() - began) / calls / 1000

        return timed

    return interleave(
        {name: batch(encode, value) for name, (encode, value) in batches.items()},
        rounds=settings.pick(40, 3),
    )


def compared(
    title: str, figures: dict[str, list[float]], reference: str, targets: dict[str, Target | None]
) -> Table:
    rows = [
        Row(
            name,
            Spread.of(samples),
            Spread.of(pair(samples, figures[reference], lambda one, other: one / other)),
            target=targets.get(name),
        )
        for name, samples in figures.items()
    ]
    return Table(title, "us", rows, reference=reference)
