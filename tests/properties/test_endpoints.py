"""What holds of every folded path, whatever a client sends as a path."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from asgi_perfkit.metrics.endpoints import fold_path

words = st.from_regex(r"[A-Za-z][A-Za-z_.~-]{0,31}", fullmatch=True)
data = st.one_of(
    st.integers(0).map(str),
    st.uuids().map(str),
    st.from_regex(r"[0-9a-f]{40}", fullmatch=True),
    st.from_regex(r"[a-z]{0,8}[0-9]{3,8}[a-z]{0,8}", fullmatch=True),
    st.text(st.characters(categories=["Cc", "Cs", "Zs", "So"]), min_size=1).filter(
        lambda text: "/" not in text
    ),
    st.text("abc", min_size=33),
)
segments = st.one_of(words, data, st.text(), st.just(""))
paths = st.one_of(
    st.text(), st.lists(segments, max_size=14).map(lambda parts: "/" + "/".join(parts))
)


@given(paths)
def test_a_folded_path_is_short(path: str) -> None:
    """A name has at most ten parts of at most 32 characters, whatever the path."""
    parts = fold_path(path).split("/")
    assert len(parts) <= 10
    assert max(map(len, parts)) <= 32


@given(paths)
def test_a_folded_path_can_be_folded_again(path: str) -> None:
    """Folding a name gives the same name."""
    assert fold_path(fold_path(path)) == fold_path(path)


@given(paths)
def test_a_folded_path_is_fit_to_print(path: str) -> None:
    """No control characters, surrogates, blanks or quotes come into a name."""
    name = fold_path(path)
    assert not {unicodedata.category(character)[0] for character in name} & {"C", "Z"}
    assert not set(name) & set("\"'\\<>%?#&;= \t\r\n\0\x7f")


@given(paths)
def test_no_number_comes_into_a_folded_path(path: str) -> None:
    """A segment of a name has at most two digits, and more than digits."""
    for part in fold_path(path).split("/"):
        assert sum(character.isdigit() for character in part) <= 2
        assert not part.isdigit()


@given(st.lists(data, min_size=1, max_size=8))
def test_what_looks_like_data_is_folded(parts: list[str]) -> None:
    """Numbers, UUIDs, hashes, blanks, symbols and overlong words are all the same name."""
    assert fold_path("/" + "/".join(parts)) == "/{id}" * len(parts)


@given(st.lists(words, max_size=8))
def test_words_stand_for_themselves(parts: list[str]) -> None:
    """A path of up to eight words is its own name."""
    path = "/" + "/".join(parts)
    assert fold_path(path) == path


@given(st.lists(words, min_size=9, max_size=20))
def test_a_deep_path_ends_in_one_for_the_rest(parts: list[str]) -> None:
    """From the ninth segment on, a path is told no further."""
    assert fold_path("/" + "/".join(parts)) == "/" + "/".join([*parts[:8], "{path}"])


@given(paths)
def test_a_name_has_only_segments_of_its_path(path: str) -> None:
    """A name says nothing that the path does not, in its order."""
    known = path.split("/")
    parts = fold_path(path).split("/")
    for position, part in enumerate(parts):
        assert part in {known[position], "{id}"} or (part == "{path}" and position == 9)
    assert re.sub(r"[^/]", "", fold_path(path)) == "/" * (len(parts) - 1)
