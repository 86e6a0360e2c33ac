"""Statements without the values in them, so that those which differ in nothing else are one.

Literals and bind markers become ``?``, comments go, lists of values fold: ``IN (1, 2, 3)`` is ``IN (?)``, the rows
behind ``VALUES`` are one row. No grammar is needed for that, only what a token is. Where the dialects of SQL disagree
about it, the text goes on as ``...``: nothing is shown that might be a value.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["MAX_LENGTH", "MySQL", "normalised"]

MAX_READ = 16_384
"""Of a statement no more than so many characters are looked at."""
MAX_LENGTH = 2_000
"""No normalised statement is longer: where one is, its middle is left out."""

_MAX_KNOWN = 4_096
_MAX_KNOWN_CHARACTERS = 524_288
_CUT = "..."


class MySQL(str):
    """A statement for MySQL or MariaDB, where ``"`` quotes values, and a backslash takes the meaning of a quote."""

    __slots__ = ()


def normalised(statement: Any) -> str:
    """The `statement` without its values: any object that a driver takes; never fails.

    What was found is kept by the hash of the statement, so that no literal stays in memory.
    """
    kind = type(statement)
    if kind is not str and kind is not MySQL:
        statement = _text_of(statement)
        kind = type(statement)
    if len(statement) > MAX_READ:
        statement = kind(statement[:MAX_READ] + " " + _CUT)
    known = _KNOWN if kind is str else _KNOWN_OF_MYSQL
    key = hash(statement)
    return known.get(key) or known.add(key, statement)


class _Known(dict[int, str]):
    """What normalised statements are, by the hashes of what they are made of. Begins anew when it is full.

    :param tokens: of the dialect.
    """

    def __init__(self, tokens: re.Pattern[str]) -> None:
        super().__init__()
        self._tokens = tokens
        self._texts: dict[str, str] = {}
        self._characters = 0

    def add(self, key: int, statement: str) -> str:
        try:
            text = _normalise(self._tokens, statement)
        except Exception:  # a str of somebody's own, whose methods raise
            text = _CUT
        if len(self) >= _MAX_KNOWN or self._characters > _MAX_KNOWN_CHARACTERS:
            self.clear()
            self._texts = {}
            self._characters = 0
        shared = self._texts.setdefault(text, text)
        if shared is text:
            self._characters += len(text)
        self[key] = shared
        return shared


def _text_of(statement: Any) -> str:
    """The text of what is no ``str``: bytes, the composed statements of psycopg, anything."""
    try:
        if isinstance(statement, str):
            return str.__str__(statement)
        if isinstance(statement, (bytes, bytearray, memoryview)):
            return bytes(statement[:MAX_READ]).decode("utf-8", "replace") + (
                f" {_CUT}" if len(statement) > MAX_READ else ""
            )
        as_string = getattr(statement, "as_string", None)
        if as_string is not None:
            found = as_string(None)
            if isinstance(found, str):
                return str.__str__(found)
    except Exception:  # which may be what is wrong with it: then the driver says so
        pass
    return f"<{type(statement).__name__}>"


def _normalise(tokens: re.Pattern[str], statement: str) -> str:
    if not statement.isascii():
        statement = statement.encode("utf-8", "replace").decode()  # surrogates have no JSON
    text = _once(tokens, statement)
    if len(text) > MAX_LENGTH:
        text = _without_middle(text)
        for _ in range(4):  # what is left may fold once more
            again = _once(tokens, text)
            if again == text:
                break
            text = again
    return text


def _once(tokens: re.Pattern[str], statement: str) -> str:
    text = " ".join(tokens.sub(_replacement, statement).split())
    if "-" in text or "+" in text:
        text = _SIGN.sub(r"\1", text)
    text = _NAMED.sub(r"\1 ?", text)
    if _SEVERAL.search(text):
        text = _LIST.sub(r"\1", text)
        text = _ROWS.sub(r"\1", text)
    if text.endswith(_CUT):
        text = _ROWS_CUT.sub(rf"\1, {_CUT}", text)
    return text


def _replacement(found: re.Match[str]) -> str:
    kind = found.lastgroup
    return found[0] if kind == "kept" else _REPLACEMENTS[kind]


_REPLACEMENTS: dict[str | None, str] = {
    "value": "?",
    "comment": " ",
    "unended": "?" + _CUT,
    "unclear": _CUT,
    "minus": "- -",
}


def _without_middle(text: str) -> str:
    """The beginning and the end, in which the conditions are; both cut where a space is no part of a name."""
    masked = _QUOTED_NAME.sub(lambda name: "x" * len(name[0]), text)
    head_end = MAX_LENGTH * 2 // 3
    head = max(masked.rfind(" ", 0, head_end + 1), 0)
    tail = masked.find(" ", len(text) - (MAX_LENGTH - head_end - len(_CUT) - 2))
    if tail < 0:
        tail = len(text)
    return f"{text[:head]} {_CUT}{text[tail:]}"


# What is tried first stands first. A word takes all that belongs to it: a digit anywhere else begins a number. What
# is kept is taken in stretches as long as can be, since each match costs.
_BLOCK = r"/\*[^*/]*(?:(?:\*(?!/)|/(?!\*))[^*/]*)*\*/"
_MARKER = r"""\?\d* | \$\w+(?![\w$]) | (?::(?!:)\w+)+ | %\([^()'"]*\)[stb]\b | %[stb]\b"""
_NUMBER = r"\.?\d[\w.]*(?:(?<=[eE])[+-]\d+)?"
_WORD = r"[^\W\d][\w$]*(?:\.[\w$]+)*"
_BETWEEN = r"[\s,()=<>*;]"
_ESCAPED = r"'[^'\\]*(?:(?:\\.|'')[^'\\]*)*'"
_TAG = r"\$(?:[^\W\d]\w*)?\$"
_STANDARD = rf"""
    (?P<kept>
      (?: (?![bBeEnNqQxX]'|[nN][qQ]'|[uU]&'){_WORD} | {_BETWEEN} | :: | "[^"]*(?:""[^"]*)*" | `[^`]*` )+
    )
  | (?P<comment> --[^\n]* | {_BLOCK})
  | (?P<value>
        [eE]{_ESCAPED}(?:[^\S\n]*\n\s*{_ESCAPED})*  # which goes on so in the next line
      | [nN]?[qQ]'(?:\[.*?\]|\{{.*?\}}|\(.*?\)|<.*?>|(?P<mark>[^\s\[{{(<]).*?(?P=mark))'  # Oracle's
      | (?:[bBnNxX]|[uU]&)?'[^']*(?:''[^']*)*'
      | (?P<tag>{_TAG}).*?(?P=tag)
      | {_MARKER} | {_NUMBER}
    )
  | (?P<unended> (?:[bBeEnNqQxX]|[nN][qQ]|[uU]&)?'.* | {_TAG}.*)
  | (?P<unclear> /\*.* | ["`].*)  # a comment within a comment, which not all take for one; a name without an end
"""
_OF_MYSQL = rf"""
    (?P<kept> (?: {_WORD} | {_BETWEEN} | `[^`]*` )+ )
  | (?P<comment> -{{2,}}(?=[\s\x00-\x1f\x7f]|\Z)[^\n]* | \#[^\n]* | {_BLOCK})
  | (?P<minus> -{{2,}})  # which white space in the place of a comment would make one
  | (?P<value>
        '[^'\\]*(?:(?:\\.|'')[^'\\]*)*'
      | "[^"\\]*(?:(?:\\.|"")[^"\\]*)*"
      | {_MARKER} | {_NUMBER}
    )
  | (?P<unended> ['"].*)
  | (?P<unclear> /\*.* | `.*)
"""
_KNOWN = _Known(re.compile(_STANDARD, re.VERBOSE | re.DOTALL))
_KNOWN_OF_MYSQL = _Known(re.compile(_OF_MYSQL, re.VERBOSE | re.DOTALL))

_QUOTED_NAME = re.compile(r"""["`][^"`]*["`]""")
# A sign that belongs to a value and not between two.
_SIGN = re.compile(
    r"((?:[=<>(,*/%|+-]|\b(?:AND|BETWEEN|BY|ELSE|IN|LIMIT|OFFSET|OR|RETURN|SELECT|THEN|TO|WHEN)\b) ?)"
    r"(?:[-+] ?){1,8}(?=\?)",  # of more there is no end to what would be tried
    re.IGNORECASE,
)
# Frameworks number their savepoints.
_NAMED = re.compile(
    r"\A((?:(?:RELEASE|ROLLBACK(?: WORK| TRANSACTION)? TO) )?SAVEPOINT|RELEASE|ROLLBACK TO) (?!SAVEPOINT\b).+",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r", ?[?(]")
_ELEMENT = r"\?(?:::[\w.]+(?:\(\?(?:, ?\?)?\))?(?:\[\])*)?"
_LIST = re.compile(rf"((?:\bIN ?\(|\bARRAY ?\[) ?{_ELEMENT})(?: ?, ?{_ELEMENT})+", re.IGNORECASE)
_ROW = r"\([^()]*(?:\([^()]*\)[^()]*)*\)"
_ROWS = re.compile(rf"((?:\bVALUES|\bIN ?\() ?{_ROW})(?: ?, ?{_ROW})+", re.IGNORECASE)
_ROWS_CUT = re.compile(rf"(\bVALUES ?{_ROW}) ?,.*\.\.\.\Z", re.IGNORECASE)
