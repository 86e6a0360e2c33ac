"""Trees of calls: what is added comes out again, by endpoint, within the bound."""

from __future__ import annotations

import threading
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_perfkit.profiling.calls import (
    DEEPER,
    MAX_DEPTH,
    MAX_PENDING,
    OVERFLOW,
    CallsByEndpoint,
    CallTree,
    Place,
    rows,
)
from tests.profiling.stacks import place, stack

PLENTY = 1024 * 1024
places = st.builds(
    Place, st.sampled_from("fgh"), st.sampled_from(["a.py", "b.py"]), st.just(1), st.integers(1, 3)
)
samples = st.lists(st.tuples(st.lists(places, max_size=5), st.integers(1, 1000)), max_size=30)


def tree(*added: tuple[list[Place], float]) -> CallTree:
    made = CallTree()
    for each, seconds in added:
        made.add(each, seconds)
    return made


def contents(of: CallTree) -> Counter[Any]:
    """By stack: its samples and its milliseconds."""
    found: Counter[Any] = Counter()
    for each, node in of.stacks():
        found[each, "samples"] += node.samples
        found[each, "ms"] += round(node.seconds * 1000)
    return found


def test_what_was_spent_is_at_the_end_of_its_stack() -> None:
    made = tree((stack("a b"), 2.0), (stack("a c"), 1.0), (stack("a b"), 0.5), (stack("a"), 4.0))
    found = {
        " ".join(each.function for each in way): (node.samples, node.seconds)
        for way, node in made.stacks()
    }
    assert found == {"a": (1, 4.0), "a b": (2, 2.5), "a c": (1, 1.0)}
    assert made.total() == (4, 7.5)


@settings(max_examples=50)
@given(samples, samples)
def test_merging_adds(first: Any, second: Any) -> None:
    one = tree(*((each, ms / 1000) for each, ms in first))
    one.merge(tree(*((each, ms / 1000) for each, ms in second)))
    together = tree(*((each, ms / 1000) for each, ms in first + second))
    assert contents(one) == contents(together)
    assert one.total()[0] == len(first) + len(second)
    assert one.total()[1] == pytest.approx(sum(ms for _, ms in first + second) / 1000)


def test_a_tree_may_be_deeper_than_the_interpreter_nests_calls() -> None:
    deep = [place("f", line) for line in range(5000)]
    assert tree((deep, 1.0)).total() == (1, 1.0)


def test_a_function_has_its_own_time_and_that_of_what_it_calls() -> None:
    found = rows([(stack("a b"), 1, 2.0), (stack("a"), 1, 1.0)])
    assert [(row["function"], row["self"], row["total"]) for row in found] == [
        ("b", 2.0, 2.0),
        ("a", 1.0, 3.0),
    ]


def test_a_function_that_calls_itself_has_its_time_once() -> None:
    (found,) = rows([(stack("a a a"), 1, 2.0)])
    assert (found["self"], found["total"]) == (2.0, 2.0)


def test_a_function_is_told_with_the_line_that_has_spent_the_most() -> None:
    own = [([place("a", 3)], 1, 0.5), ([place("a", 7)], 1, 1.0)]
    calling = [([place("a", 9), place("b")], 1, 30.0)]
    found = {row["function"]: row["line"] for row in rows(own + calling)}
    assert found == {"a": 7, "b": 1}
    assert rows(calling)[1]["line"] == 9


def test_of_one_name_in_two_files_or_twice_in_one_each_is_another() -> None:
    found = rows(
        [
            ([Place("get", "a.py", 1, 2)], 1, 1.0),
            ([Place("get", "b.py", 1, 2)], 1, 1.0),
            ([Place("get", "b.py", 20, 21)], 1, 1.0),
        ]
    )
    assert [(row["file"], row["line"]) for row in found] == [("a.py", 2), ("b.py", 2), ("b.py", 21)]


# ---- by endpoint


def by_endpoint(calls: CallsByEndpoint) -> dict[str, tuple[int, float]]:
    return {endpoint: made.total() for endpoint, made in calls.trees()}


def test_endpoints_are_apart_and_the_heaviest_is_first() -> None:
    calls = CallsByEndpoint(PLENTY)
    calls.add("GET /a", stack("x y"), 1.0)
    calls.add("GET /b", stack("x y"), 2.0)
    assert list(by_endpoint(calls).items()) == [("GET /b", (1, 2.0)), ("GET /a", (1, 1.0))]
    assert calls.statistics()["GET /a"] == {
        "samples": 1,
        "seconds": 1.0,
        "top": [
            {"function": "y", "file": "/app/shop.py", "line": 1, "self": 1.0, "total": 1.0},
            {"function": "x", "file": "/app/shop.py", "line": 1, "self": 0.0, "total": 1.0},
        ],
    }


def test_the_name_at_the_end_counts() -> None:
    """A request is sampled before it has been routed; in flight it has the name that is known by then."""
    calls = CallsByEndpoint(PLENTY)
    label = iter(["GET /items/1", "GET /items/{id}"])
    calls.add_pending("request", label.__next__, stack("a"), 1.0)
    assert by_endpoint(calls) == {"GET /items/1": (1, 1.0)}
    assert by_endpoint(calls) == {"GET /items/{id}": (1, 1.0)}
    calls.ended("request", "GET /items/{item_id}")
    assert by_endpoint(calls) == {"GET /items/{item_id}": (1, 1.0)}
    assert not calls.pending


def test_one_that_has_ended_is_let_go_of_when_the_next_sample_is_taken() -> None:
    """Whoever it is of may be wanted no more, and the samples with them."""
    calls = CallsByEndpoint(PLENTY)
    calls.add_pending("request", lambda: "?", stack("a"), 1.0)
    calls.settle()
    assert set(calls.pending) == {"request"}
    calls.ended("request", "GET /")
    calls.settle()
    assert not calls.pending


def test_frozen_it_takes_nothing_more_and_keeps_the_names_that_are_known() -> None:
    calls = CallsByEndpoint(PLENTY)
    label = iter(["GET /items/1", "GET /gone"])
    calls.add_pending("request", label.__next__, stack("a"), 1.0)
    calls.freeze()
    calls.add("GET /", stack("a"), 1.0)
    calls.add_pending("another", label.__next__, stack("a"), 1.0)
    assert by_endpoint(calls) == {"GET /items/1": (1, 1.0)}


def test_a_request_that_was_never_seen_may_end() -> None:
    calls = CallsByEndpoint(PLENTY)
    calls.ended("request", "GET /")
    assert by_endpoint(calls) == {}


def test_one_that_has_ended_is_not_withdrawn() -> None:
    calls = CallsByEndpoint(PLENTY)
    calls.add_pending("ended", lambda: "?", stack("a"), 1.0)
    calls.add_pending("lost", lambda: "?", stack("a"), 2.0)
    calls.ended("ended", "GET /")
    calls.withdraw("ended", "<outside>")
    calls.withdraw("lost", "<outside>")
    assert by_endpoint(calls) == {"<outside>": (1, 2.0), "GET /": (1, 1.0)}


def test_what_one_request_has_spent_can_be_told_before_it_ends() -> None:
    calls = CallsByEndpoint(PLENTY)
    calls.add_pending("request", lambda: "GET /", stack("a b"), 1.0)
    found = calls.tree_of("request")
    assert found is not None
    assert contents(found) == {((place("a"), place("b")), "samples"): 1} | {
        ((place("a"), place("b")), "ms"): 1000
    }
    assert calls.tree_of("another") is None


def test_of_one_endpoint_alone() -> None:
    calls = CallsByEndpoint(PLENTY, "GET /a")
    calls.add("GET /b", stack("x"), 1.0)
    calls.add_pending(1, lambda: "GET /b", stack("x"), 2.0)
    calls.add_pending(2, lambda: "GET /b", stack("x"), 4.0)
    assert by_endpoint(calls) == {}
    calls.ended(1, "GET /a")
    calls.ended(2, "GET /b")
    assert by_endpoint(calls) == {"GET /a": (1, 2.0)}


def test_what_is_of_nobody_is_let_go_of() -> None:
    calls = CallsByEndpoint(PLENTY)
    calls.add(None, stack("a"), 1.0)
    for owner in ("dropped", "withdrawn", "frozen"):
        calls.add_pending(owner, lambda: None, stack("a"), 1.0)
    assert by_endpoint(calls) == {}
    calls.ended("dropped", None)
    calls.withdraw("withdrawn", None)
    assert set(calls.pending) == {"frozen"}
    calls.freeze()
    assert not calls.pending
    assert by_endpoint(calls) == {}


def test_what_was_let_go_of_leaves_room_for_others() -> None:
    calls = CallsByEndpoint(64 * 1024)
    for number in range(1000):
        calls.add_pending(number, lambda: None, stack(f"a{number} b{number} c{number}"), 1.0)
        calls.ended(number, None)
    calls.add("GET /", stack("x y"), 1.0)
    ((_, made),) = calls.trees()
    ((kept, _),) = made.stacks()
    assert list(kept) == stack("x y")


def test_cleared_it_is_empty_and_goes_on() -> None:
    calls = CallsByEndpoint(PLENTY)
    calls.add("GET /", stack("a"), 1.0)
    calls.add_pending("request", lambda: "GET /", stack("a"), 1.0)
    calls.clear()
    calls.ended("request", "GET /")
    assert calls.statistics() == {}
    calls.add("GET /", stack("a"), 1.0)
    assert by_endpoint(calls) == {"GET /": (1, 1.0)}


def test_of_a_stack_that_is_too_deep_both_ends_are_kept() -> None:
    calls = CallsByEndpoint(PLENTY)
    calls.add("GET /", [place("f", line) for line in range(1000)], 1.0)
    ((_, made),) = calls.trees()
    ((kept, _),) = made.stacks()
    assert len(kept) == MAX_DEPTH
    assert kept[0].line == 0
    assert kept[-1].line == 999
    assert DEEPER in kept


# ---- the bound


def flood(calls: CallsByEndpoint, times: int, endpoints: int = 3) -> None:
    for number in range(times):
        ways = [place("base"), *(place(f"f{number}", line) for line in range(6))]
        calls.add(f"GET /{number % endpoints}", ways, 0.001)


@settings(max_examples=50)
@given(samples, st.integers(0, 6000))
def test_the_bound_loses_no_time(added: Any, max_bytes: int) -> None:
    """What has no room is counted as one; the samples and the seconds of each endpoint stay what they were."""
    calls = CallsByEndpoint(max_bytes)
    for each, ms in added:
        calls.add("GET /", each, ms / 1000)
    everything = tree(*((each, ms / 1000) for each, ms in added)).total()
    assert sum(found[0] for found in by_endpoint(calls).values()) == everything[0]
    assert sum(found[1] for found in by_endpoint(calls).values()) == pytest.approx(everything[1])


def test_a_flood_of_stacks_takes_no_more_than_the_bound() -> None:
    max_bytes = 256 * 1024
    calls = CallsByEndpoint(max_bytes)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        flood(calls, 2500)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert max_bytes / 8 < after - before < max_bytes
    assert calls.overflowed > 1000
    assert sum(made.total()[0] for _, made in calls.trees()) == 2500
    assert OVERFLOW in dict(calls.trees())["GET /0"].children


def test_a_flood_of_endpoints_takes_no_more_than_the_bound() -> None:
    calls = CallsByEndpoint(64 * 1024)
    flood(calls, 2000, endpoints=2000)
    found = by_endpoint(calls)
    assert len(found) < 200
    assert found[OVERFLOW.function][0] > 1500
    assert sum(each[0] for each in found.values()) == 2000


def test_what_is_heavy_outlasts_a_flood() -> None:
    calls = CallsByEndpoint(256 * 1024)
    for _ in range(50):
        calls.add("GET /0", stack("base heavy"), 0.1)
    flood(calls, 5000)
    heavy = [row for row in calls.statistics()["GET /0"]["top"] if row["function"] == "heavy"]
    assert heavy[0]["self"] == pytest.approx(5.0)


def test_what_comes_after_a_flood_finds_room() -> None:
    calls = CallsByEndpoint(256 * 1024)
    flood(calls, 5000)
    for _ in range(5000):
        calls.add("GET /new", stack("base new"), 0.001)
    assert calls.statistics()["GET /new"]["top"][0]["function"] == "new"


def test_a_smaller_bound_keeps_what_is_heaviest() -> None:
    calls = CallsByEndpoint(PLENTY)
    calls.add("GET /0", stack("base heavy"), 10.0)
    flood(calls, 300)
    calls.resize(16 * 1024)
    assert by_endpoint(calls)["GET /0"] == (101, pytest.approx(10.1))
    assert calls.statistics()["GET /0"]["top"][0]["function"] == "heavy"
    assert calls.overflowed > 200


def test_requests_that_never_end_are_given_their_names_in_the_end() -> None:
    calls = CallsByEndpoint(16 * PLENTY)
    for number in range(MAX_PENDING + 10):
        calls.add_pending(number, lambda: "GET /", stack("a"), 1.0)
    assert len(calls.pending) == MAX_PENDING
    assert by_endpoint(calls) == {"GET /": (MAX_PENDING + 10, float(MAX_PENDING + 10))}


def test_readers_and_writers_at_once() -> None:
    calls = CallsByEndpoint(64 * 1024)
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                calls.statistics()
        except BaseException as failure:
            failures.append(failure)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        calls.add_pending(number, lambda: "GET /?", [place(f"f{number}")], 1.0)
        calls.ended(number, f"GET /{number % 7}")
    done.set()
    reader.join()
    assert not failures
    assert sum(found[0] for found in by_endpoint(calls).values()) == 300
