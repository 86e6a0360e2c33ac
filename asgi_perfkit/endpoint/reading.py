"""What has to be read of a request for a function and all that it depends on: found once, for each plan."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final

from asgi_perfkit.endpoint.forms import FormReader
from asgi_perfkit.endpoint.inputs import BodyInput, Input, TextInput, Unfit
from asgi_perfkit.endpoint.intake import Intake
from asgi_perfkit.exceptions import (
    ConfigurationTypeError,
    DependencyError,
    InvalidRequestError,
    Problem,
)
from asgi_perfkit.resources.plan import GIVEN, Known, Node, Plan

__all__ = ["INTAKE", "Reading"]

INTAKE: Final = "endpoint_intake"
"""The name under which inputs know the intake: as their parameter is called."""


class Reading:
    """What is read for one plan.

    :param inputs: what makes the values.
    :param plan: that they are in.
    :raises ConfigurationTypeError: more than one parameter is the body.
    :ivar reads: whether anything is read at all.
    :ivar has_files: whether there may be files among it.
    :ivar solves: whether there is more to make than what is read.
    :ivar given: whether the function wants the arguments of an ASGI app.
    :ivar positional: the keys of the values that the function is called with, if nothing is to be solved.
    :ivar named: the same by name.
    """

    __slots__ = (
        "_body",
        "_form",
        "_texts",
        "given",
        "has_files",
        "named",
        "positional",
        "reads",
        "solves",
    )

    def __init__(self, inputs: Sequence[Input], plan: Plan) -> None:
        self.solves = len(inputs) < len(plan.nodes)
        self.given = False
        self.positional: list[Hashable] = []
        self.named: list[tuple[str, Hashable]] = []
        if not self.solves:
            for each in plan.root.inputs:
                key: Hashable
                if isinstance(each.source, Known):
                    self.given = True
                    key = each.source.name
                else:
                    key = each.source.call
                if each.name is None:
                    self.positional.append(key)
                else:
                    self.named.append((each.name, key))
        texts = [each for each in inputs if isinstance(each, TextInput)]
        fields = [each for each in texts if each.part == "form"]
        bodies = [each for each in inputs if isinstance(each, BodyInput)]
        _check_bodies([*bodies, *fields[:1]] if bodies else [], plan)
        _check_names(fields)
        _check_keeping(plan)
        self._texts = [each for each in texts if each.part != "form"]
        self._body = bodies[0] if bodies else None
        self._form = FormReader(fields) if fields else None
        self.reads = bool(inputs)
        self.has_files = any(each.is_file for each in fields)

    @classmethod
    def of(cls, plan: Plan) -> Reading:
        """What is read for a `plan`."""
        nodes: list[Node] = plan.nodes
        return cls([each.call for each in nodes if isinstance(each.call, Input)], plan)

    async def read(self, intake: Intake) -> None:
        """Read the values. A body is read only if the rest fits.

        :raises RequestError: something cannot be used; all that was found is told at once.
        :raises ClientDisconnectedError: the client has left.
        """
        values = intake.values
        problems: list[Problem] = []
        for each in self._texts:
            try:
                values[each] = each.take(intake)
            except Unfit as error:
                problems.append(Problem(each.part, each.name, str(error)))
        if not problems and self._body is not None:
            values[self._body] = await self._body.read(intake)
        elif not problems and self._form is not None:
            problems = await self._form.read(intake)
        if problems:
            raise InvalidRequestError(problems)


def _check_bodies(bodies: Sequence[Input], plan: Plan) -> None:
    if len(bodies) > 1:
        first, second = (each.parameter for each in bodies[:2])
        raise ConfigurationTypeError(
            f"{second.function}({second.name})",
            second.annotation,
            f"the body is {first.function}({first.name}) already, and a request has one: "
            "make one model of both.",
        )


def _check_names(fields: Sequence[TextInput]) -> None:
    by_name: dict[str, Any] = {}
    for each in fields:
        other = by_name.setdefault(each.name, each).parameter
        if other is not each.parameter:
            raise ConfigurationTypeError(
                f"{each.parameter.function}({each.parameter.name})",
                each.name,
                f"{other.function}({other.name}) is this field of the form already: depend on that.",
            )


def _check_keeping(plan: Plan) -> None:
    for node in plan.nodes:
        if node.ttl is not None and (GIVEN, INTAKE) in node.known:
            raise DependencyError(
                [node.name],
                None,
                "its value is kept for other requests (ttl), and it is made of what one has brought: "
                "leave out the ttl, and put what is worth keeping into a function with cached().",
            )
