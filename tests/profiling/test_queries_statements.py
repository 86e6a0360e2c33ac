"""Normalised statements: no value is left in them, and those that differ in values alone are one."""

from __future__ import annotations

import sys
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from asgi_perfkit.profiling.queries import statements
from asgi_perfkit.profiling.queries.statements import MAX_LENGTH, MySQL, normalised

# By what it is about.
STATEMENTS = {
    "numbers": (
        "SELECT 1, 2.5, .5, 1., -3, +4, 1e9, 1.5E-3, 0xFF, 1_000 FROM t",
        "SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM t",
    ),
    "names with digits": (
        "SELECT t1.c2, utf8mb4, _3, a$4 FROM s5.t6 AS x7",
        "SELECT t1.c2, utf8mb4, _3, a$4 FROM s5.t6 AS x7",
    ),
    "quoted names": (
        'SELECT "a 1", "b""2", `c 3` FROM "t 4"',
        'SELECT "a 1", "b""2", `c 3` FROM "t 4"',
    ),
    "strings": (
        "a = 'x' AND b = 'it''s' AND c = '' AND d = '\\'",
        "a = ? AND b = ? AND c = ? AND d = ?",
    ),
    "strings with a prefix": (
        "E'it\\'s', e'\\\\', N'x', X'ff', b'01', U&'\\0041', nice'x'",
        "?, ?, ?, ?, ?, ?, nice?",
    ),
    "dollars": (
        "SELECT $$it's$$, $a$ $b$ $$ $a$, $1, $name",
        "SELECT ?, ?, ?, ?",
    ),
    "markers": (
        "? ?1 $1 :name :2 %s %(name)s %b",
        "? ? ? ? ? ? ? ?",
    ),
    "no markers": (
        "a::text, b % c, d := e, '%%' LIKE f, %some",
        "a::text, b % c, d := e, ? LIKE f, %some",
    ),
    "comments": (
        "SELECT a -- the 'first\n, b/* the 2nd */FROM/**/t",
        "SELECT a , b FROM t",
    ),
    "white space": ("  SELECT\ta,\n\n   b\r\n FROM t ; ", "SELECT a, b FROM t ;"),
    "the case of keywords": ("select A fRoM t", "select A fRoM t"),
    "a sign": (
        "a = -1 AND b > - 2 AND c IN (-1) AND d - 3 < e-4 LIMIT -1",
        "a = ? AND b > ? AND c IN (?) AND d - ? < e-? LIMIT ?",
    ),
    "lists": (
        "a IN (1, 2,3) AND b NOT IN ('x') AND c in (%s, %s) AND d IN ($1::INTEGER, $2::INTEGER)",
        "a IN (?) AND b NOT IN (?) AND c in (?) AND d IN (?::INTEGER)",
    ),
    "lists of rows": ("(a, b) IN ((1, 2), (3, 4))", "(a, b) IN ((?, ?))"),
    "no lists": ("f(1, 2), a IN (SELECT b FROM t)", "f(?, ?), a IN (SELECT b FROM t)"),
    "arrays": ("a = ANY(ARRAY[1, 2, 3]), b[1]", "a = ANY(ARRAY[?]), b[?]"),
    "rows": (
        "INSERT INTO t (a, b) VALUES (1, now()), (2, NULL), (-3, f(4)) ON CONFLICT DO NOTHING",
        "INSERT INTO t (a, b) VALUES (?, now()) ON CONFLICT DO NOTHING",
    ),
    "NULL and the like": ("a IS NOT NULL AND b = TRUE", "a IS NOT NULL AND b = TRUE"),
    "savepoints": ("SAVEPOINT sa_savepoint_17", "SAVEPOINT ?"),
    "their release": ('RELEASE SAVEPOINT "s139_x4"', "RELEASE SAVEPOINT ?"),
    "their rollback": ("rollback to savepoint s1", "rollback to savepoint ?"),
    "a string without an end": ("SELECT 'secret, 1", "SELECT ?..."),
    "a dollar string without an end": ("SELECT $x$secret $y$", "SELECT ?..."),
    "a name without an end": ('SELECT "secret', "SELECT ..."),
    "a comment without an end": ("SELECT a /* secret", "SELECT a ..."),
    # For PostgreSQL the inner comment is one, and for SQLite the outer ends with it.
    "a comment in a comment": ("SELECT a /* b /* c */ 'd */ secret'", "SELECT a ..."),
    "nothing": ("", ""),
    "no text": ("\ud800 1\0", "? ?\0"),
}  # fmt: skip


@pytest.mark.parametrize(("statement", "wanted"), STATEMENTS.values(), ids=STATEMENTS)
def test_what_becomes_of(statement: str, wanted: str) -> None:
    assert normalised(statement) == wanted
    assert normalised(wanted) == wanted


def test_mysql_quotes_values_its_own_way() -> None:
    """A backslash takes the meaning of a quote there, `"` quotes a value, and `#` begins a comment."""
    statement = "SELECT `a 1`, \"it's\", 'it\\'s', 5--6 # it's 7\nFROM t -- it's"
    assert normalised(MySQL(statement)) == "SELECT `a 1`, ?, ?, ?- ? FROM t"
    assert normalised(MySQL("'a' \"b")) == "? ?..."
    # As anywhere else it is something else, whichever is asked for first.
    assert normalised("'\\', x, ''") == "?, x, ?"
    assert normalised(MySQL("'\\', x, ''")) == "??..."


class Composed:
    """As psycopg has them."""

    def as_string(self, context: Any) -> str:
        assert context is None
        return "SELECT 'secret' FROM \"t 1\""


class Broken:
    def as_string(self, context: Any) -> str:
        raise RuntimeError


class Text(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise RuntimeError

    def __hash__(self) -> int:
        raise RuntimeError


@pytest.mark.parametrize(
    ("statement", "wanted"),
    [
        (b"SELECT 'secret'", "SELECT ?"),
        (bytearray(b"SELECT 5"), "SELECT ?"),
        (b"\xff\xfe = 5", "\ufffd\ufffd = ?"),
        (Composed(), 'SELECT ? FROM "t 1"'),
        (Broken(), "<Broken>"),
        (None, "<NoneType>"),
        (5, "<int>"),
        (Text("SELECT 5"), "SELECT ?"),
    ],
    ids=["bytes", "bytearray", "no text", "composed", "broken", "None", "a number", "a str's kind"],
)
def test_what_is_no_str(statement: Any, wanted: str) -> None:
    """Whatever a driver may be given has a text to show, and never raises."""
    assert normalised(statement) == wanted


@pytest.mark.parametrize("make", [str, str.encode, MySQL])
def test_a_statement_of_ten_megabytes(make: Any) -> None:
    """It is cut, wherever that falls, and no part of its values is shown."""
    for opening in ("a = '", "a IN (", "a -- "):
        statement = make(f"SELECT b FROM t WHERE {opening}" + "4711, " * 1_700_000)
        text = normalised(statement)
        assert text.startswith("SELECT b FROM t WHERE a")
        assert len(text) < 50
        assert "4711" not in text


def test_of_a_long_statement_the_end_is_shown_too() -> None:
    """Its middle is left out: the conditions stand at the end."""
    columns = ", ".join(f't."column {number}"' for number in range(300))
    text = normalised(f"SELECT {columns} FROM t WHERE t.id = 5 ORDER BY t.id")
    assert len(text) <= MAX_LENGTH
    assert text.startswith('SELECT t."column 0", t."column 1",')
    assert text.endswith("FROM t WHERE t.id = ? ORDER BY t.id")
    assert normalised(text) == text


def test_rows_that_are_cut_fold_all_the_same() -> None:
    """How many of them fit is not to make two statements of one."""
    texts = {
        normalised("INSERT INTO t VALUES " + f"({number}, 'x'), " * 2_000)
        for number in (1, 22, 333, 4_444)
    }
    assert texts == {"INSERT INTO t VALUES (?, ?), ..."}


# ---- whatever it is made of

SECRET = "zQz"
VALUES = st.one_of(
    st.sampled_from(
        [
            f"'{SECRET}'", f"'it''s {SECRET}'", f"'\\{SECRET}'", f"E'\\'{SECRET}'", f"e'\\\\ {SECRET}'",
            f"N'{SECRET}'", f"U&'{SECRET}'", f"$${SECRET}$$", f"$t$'{SECRET}$t$", f"'a\n -- {SECRET}'",
            f"'/* {SECRET}'", f"'\"{SECRET}'", f"'$${SECRET}'",
        ]
    ),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
)  # fmt: skip
REST = st.sampled_from(
    [
        "SELECT", "FROM", "t", "a.b", '"na me"', '"na""me"', "`n`", "IN", "VALUES", "(", ")", ",", "=", "-", "+",
        "::text", "[", "]", ";", "*", "/", "||", "%s", "?", "$x", ":x", "%(x)s", "AND", "LIMIT", f"-- {SECRET} it's\n",
        f"/* {SECRET} ' */", "E", "N", "\\", "&", "#>",
    ]
)  # fmt: skip
TOKENS = st.lists(st.one_of(VALUES, REST), max_size=40)
ODD = st.text(alphabet="'\"`$-/*#:;?%()[],.\\ \n\t01eExXNn_aIiNVALUESuU&+=<\ud800é²")


def shows_a_value(text: str) -> bool:
    return SECRET in text or any(character.isdigit() for character in text)


@hypothesis.given(TOKENS)
def test_no_value_is_left(tokens: list[str]) -> None:
    """Whatever it stands between: a value in any quoting, and what stands in a comment."""
    text = normalised(" ".join(tokens))
    assert not shows_a_value(text), text


@hypothesis.given(TOKENS, st.integers(0, 200))
def test_no_value_is_left_where_a_statement_was_cut(tokens: list[str], length: int) -> None:
    text = normalised(" ".join(tokens)[:length])
    assert not shows_a_value(text), text


@hypothesis.given(st.one_of(ODD, st.text(), ODD.map(lambda text: text * 200)), st.booleans())
def test_any_text_is_normalised_once_and_for_all(statement: str, of_mysql: bool) -> None:
    """It never raises, is bounded, can be encoded, and is what becomes of itself."""
    kind = MySQL if of_mysql else str
    text = normalised(kind(statement))
    assert type(text) is str
    assert len(text) <= MAX_LENGTH
    text.encode()
    assert normalised(kind(text)) == text


@hypothesis.given(st.binary())
def test_any_bytes_are_normalised(statement: bytes) -> None:
    normalised(statement).encode()


UNSIGNED = VALUES.map(lambda value: value.lstrip("-"))


@hypothesis.given(st.lists(st.one_of(st.none(), REST), max_size=40), st.data())
def test_other_values_make_no_other_statement(
    tokens: list[str | None], data: st.DataObject
) -> None:
    """Where one stands in another's place, of whatever kind."""

    def filled() -> str:
        return " ".join(data.draw(UNSIGNED) if token is None else token for token in tokens)

    assert normalised(filled()) == normalised(filled())


# ---- what is remembered


def test_what_is_known_is_bounded() -> None:
    """A flood of statements, all the same but for their values or all different, leaves little behind."""
    known = statements._KNOWN
    for number in range(20_000):
        normalised(f"SELECT a FROM t WHERE b = {number}")
        if number % 4 == 0:
            normalised(f"SELECT {'a' * 1_500}{number}x FROM t")
    shared = {id(text): text for text in known.values()}.values()
    assert sys.getsizeof(known) + sum(map(sys.getsizeof, shared)) < 2_000_000
    assert len(known) <= 4_097


def test_no_literal_is_remembered() -> None:
    """What statements are known by says nothing of their values."""
    normalised("SELECT 'a very secret value'")
    assert all(type(key) is int for key in statements._KNOWN)


def test_statements_that_differ_in_values_share_their_text() -> None:
    """So many of them take no more memory than one."""
    assert normalised("SELECT a FROM shared WHERE b = 1") is normalised(
        "SELECT a FROM shared WHERE b = 2"
    )
