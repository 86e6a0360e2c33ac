"""The errors of the kit: what they are, and what they say."""

from __future__ import annotations

import pickle

import pytest

from asgi_perfkit import ConfigurationError, PerfKitError
from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [(ConfigurationTypeError, TypeError), (ConfigurationValueError, ValueError)],
)
def test_a_wrong_argument_is_also_the_builtin_error(
    kind: type[ConfigurationError], builtin: type[Exception]
) -> None:
    """Who catches TypeError or ValueError, or everything of the kit's, catches it."""
    error = kind("f(x=...)", -5, "give 1 or more.")
    for base in (builtin, ConfigurationError, PerfKitError, Exception):
        assert isinstance(error, base)


def test_the_message_names_subject_value_and_remedy() -> None:
    """All three stand in the message; subject and value can be read from the error as well."""
    error = ConfigurationValueError("f(x=...)", -5, "give 1 or more.")
    assert str(error) == "f(x=...) got -5: give 1 or more."
    assert (error.subject, error.value) == ("f(x=...)", -5)


@pytest.mark.parametrize("length", [198, 199, 1_000_000])
def test_a_long_value_is_cut_in_the_message(length: int) -> None:
    """A value may be as long as it likes: the message shows 200 characters of it, the error has it whole."""
    value = "x" * length
    error = ConfigurationTypeError("f(x)", value, "give less.")
    shown = str(error).removeprefix("f(x) got ").removesuffix(": give less.")
    assert shown == (repr(value) if length == 198 else "'" + "x" * 196 + "...")
    assert error.value is value


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("max_serie", "max_series"),
        ("maxseries", "max_series"),
        ("Memory", "memory"),
        ("registy", "registry"),
    ],
)
def test_an_unknown_option_names_the_nearest(option: str, near: str) -> None:
    """The message names the option, the one that was probably meant, and all there are."""
    error = ConfigurationTypeError.unknown_option(
        "f(...)", option, ["registry", "memory", "max_series"]
    )
    assert isinstance(error, TypeError)
    assert error.value == option
    assert str(error) == (
        f"f(...) option got {option!r}: there is no such option; did you mean {near!r}? "
        "The options are: max_series, memory, registry."
    )


def test_an_option_that_is_like_no_other_names_them_all() -> None:
    """Where nothing is near, nothing is guessed."""
    error = ConfigurationTypeError.unknown_option("f(...)", "colour", iter(["registry", "memory"]))
    assert "did you mean" not in str(error)
    assert str(error).endswith("The options are: memory, registry.")


def test_the_message_is_all_that_printing_needs() -> None:
    """`repr` and the traceback show the message."""
    error = ConfigurationValueError("f(x=...)", -5, "give 1 or more.")
    assert error.args == (str(error),)


def test_an_error_survives_pickling() -> None:
    """An error that crosses a process boundary (a worker that cannot start) arrives as what it was."""
    error = ConfigurationValueError("f(x=...)", -5, "give 1 or more.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is ConfigurationValueError
    assert str(copy) == str(error)
    assert (copy.subject, copy.value) == (error.subject, error.value)
