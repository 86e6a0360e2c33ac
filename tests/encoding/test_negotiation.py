"""Which coding a client gets, by what it accepts."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asgi_perfkit.encoding.negotiation import Negotiator, weights

PREFERRED = Negotiator({name: name.decode() for name in (b"zstd", b"br", b"gzip")})
ONLY_GZIP = Negotiator({b"gzip": "gzip"})

CHROMIUM = b"gzip, deflate, br, zstd"
SAFARI = b"gzip, deflate, br"


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (CHROMIUM, "zstd"),
        (SAFARI, "br"),
        (b"gzip", "gzip"),
        (b"deflate", None),
        # No field, and one that names nothing.
        (b"", None),
        (b" ", None),
        (b",", None),
        (b"identity", None),
        # The client's weights, then the server's preference.
        (b"gzip;q=1.0, br;q=0.9, zstd;q=0.8", "gzip"),
        (b"gzip;q=0.5, br;q=0.500, zstd;q=0.4", "br"),
        (b"gzip;q=0.001", "gzip"),
        (b"gzip;q=0", None),
        (b"gzip;q=0.000, br", "br"),
        (b"zstd;q=0, *", "br"),
        (b"*", "zstd"),
        (b"*;q=0.5", "zstd"),
        (b"*;q=0.5, gzip", "gzip"),
        (b"*;q=0", None),
        (b"gzip, *;q=0", "gzip"),
        # Identity is the last resort, unless it is weighed higher.
        (b"gzip, identity", "gzip"),
        (b"gzip;q=0.5, identity;q=0.5", "gzip"),
        (b"gzip;q=0.5, identity", None),
        (b"gzip;q=0.5, identity;q=0", "gzip"),
        (b"identity;q=0", None),
        (b"identity;q=0.1, *;q=0.5", "zstd"),
        # Case, blanks, empty elements, the old name, the same twice.
        (b"GZip", "gzip"),
        (b"BR ; Q=1", "br"),
        (b" ,, gzip\t;\tq=0.3 ,", "gzip"),
        (b"x-gzip", "gzip"),
        (b"X-GZIP;q=0.5, br;q=0.4", "gzip"),
        (b"br, gzip, br;q=0", "gzip"),
        (b"br;q=0, gzip, br", "gzip"),
        (b"gzip, x-gzip;q=0", None),
        # Not made as the specification has it.
        (b"gzip;q=1.1", None),
        (b"gzip;q=0.1234", None),
        (b"gzip;q=1.001", None),
        (b"gzip;q=-1", None),
        (b"gzip;q=.5", None),
        (b"gzip;q=", None),
        (b"gzip;q", None),
        (b"gzip; q = 1", None),
        (b"gzip;level=9", None),
        (b"gzip;q=1;q=0", None),
        (b"gzip br", None),
        (b"gzip; br", None),
        (b'"gzip"', None),
        (b"gzip, b\xc3\xbcr", None),
        (b"gzip\n", None),
        (b"gzip;q=nan", None),
        (b"gzip;q=inf", None),
        (b"gzip;q=1e0", None),
        (b"gzip;q=0_1", None),
    ],
)
def test_what_a_client_gets(accepted: bytes, coding: str | None) -> None:
    assert PREFERRED.choose(accepted).coding == coding


@pytest.mark.parametrize(
    ("accepted", "refuses"),
    [
        (b"", False),
        (b"gzip", False),
        (b"identity;q=0", True),
        (b"gzip, identity;q=0.0", True),
        (b"*;q=0", True),
        (b"gzip, *;q=0", True),
        (b"gzip, *;q=0, identity;q=0.1", False),
        (b"*, identity;q=0", True),
        (b"identity;q=0, gzip;q=9", False),
    ],
)
def test_whether_a_client_refuses_what_is_not_compressed(accepted: bytes, refuses: bool) -> None:
    assert PREFERRED.choose(accepted).refuses_identity is refuses


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (CHROMIUM, "gzip"),
        (b"zstd, br", None),
        (b"*;q=0.1", "gzip"),
        # Whose `*` is also identity's: with no zstd there, nothing compressed is liked as much.
        (b"gzip;q=0.5, *", None),
    ],
)
def test_what_the_server_has_not_is_not_chosen(accepted: bytes, coding: str | None) -> None:
    assert ONLY_GZIP.choose(accepted).coding == coding


def test_the_servers_order_decides_among_equals() -> None:
    """Whatever the client's own order."""
    for order in ((b"br", b"gzip"), (b"gzip", b"br")):
        negotiator = Negotiator({name: name for name in order})
        assert negotiator.choose(b"gzip, br").coding == order[0]
        assert negotiator.choose(b"br, gzip").coding == order[0]


def test_a_field_of_any_length_takes_no_time_and_is_not_kept() -> None:
    """What is longer than any client says is not read at all."""
    negotiator = Negotiator({b"gzip": "gzip"})
    assert negotiator.choose(b"gzip".ljust(1_000)).coding == "gzip"
    assert negotiator.choose(b"gzip".ljust(1_001)).coding is None
    assert negotiator.choose(b"gzip," * 1_000_000).coding is None


# ---- any field

TOKENS = st.text(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=8)
NAMES = st.sampled_from(["zstd", "br", "gzip", "identity", "*", "deflate", "BR", "x-gzip"]) | TOKENS
QVALUES = st.integers(0, 1000).map(lambda number: (f"{number / 1000:.3f}", number))
BLANKS = st.text(" \t", max_size=2)


@given(
    st.lists(st.tuples(NAMES, st.none() | QVALUES, BLANKS, BLANKS), max_size=6), st.integers(0, 3)
)
def test_a_field_that_is_well_made_is_understood(
    elements: list[tuple[str, tuple[str, int] | None, str, str]], empty: int
) -> None:
    """Each coding has its weight, or the lowest of them, whatever the blanks and empty elements."""
    expected: dict[bytes, int] = {}
    written = []
    for name, qvalue, before, behind in elements:
        weight = 1000 if qvalue is None else qvalue[1]
        key = name.lower().encode().replace(b"x-gzip", b"gzip")
        expected[key] = min(weight, expected.get(key, weight))
        suffix = "" if qvalue is None else f"{before};{behind}q={qvalue[0]}"
        written.append(f"{behind}{name}{suffix}{before}")
    field = ",".join([*written, *[""] * empty]).encode()
    assert weights(field) == expected


@given(st.binary(max_size=60) | st.text("gzipbrstd*q=;,. 01x", max_size=60).map(str.encode))
@example(b"gzip;q=1.000,br;q=0.")
def test_no_field_fails(field: bytes) -> None:
    """Whatever comes in, what comes out is a coding that was not refused, or none."""
    weighed = weights(field)
    assert all(0 <= weight <= 1000 for weight in weighed.values())
    choice = PREFERRED.choose(field)
    if choice.coding is not None:
        highest = max(
            weighed.get(name.encode(), weighed.get(b"*", 0)) for name in ("zstd", "br", "gzip")
        )
        chosen = weighed.get(choice.coding.encode(), weighed.get(b"*", 0))
        assert chosen == highest > 0
