"""Carries out a plan with several calls at a time: each as soon as what it depends on is there.

* What is concurrent runs in tasks of its own. All else runs in the task that asked, one after the other in the order
  of the plan: generators, so that they are left in the task that entered them.
* Each task begins with the context variables as they are where it is started, and as what it depends on has set them.
  What was set in tasks is set in the one that asked, too, before its next call and at the end.
* The first error ends it: no call is begun any more, the tasks are cancelled and waited for. A generator that is being
  entered at that moment is not interrupted.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Hashable
from contextvars import Context, ContextVar, copy_context
from time import perf_counter_ns
from typing import Any

from asgi_perfkit.caching.store import MISSING
from asgi_perfkit.resources.apart import Apart
from asgi_perfkit.resources.code import Caches, Names, Solver, namespace_of, run_code
from asgi_perfkit.resources.manager import ResourceManager, not_yielded
from asgi_perfkit.resources.plan import Node, Plan
from asgi_perfkit.resources.running import METRIC, Attempt, Ledger, begin, need_app, settle
from asgi_perfkit.resources.shield import shielded
from asgi_perfkit.resources.signatures import (
    ASYNC,
    ASYNC_GENERATOR,
    GENERATORS,
    INLINE,
    INLINE_GENERATOR,
    THREAD,
    THREAD_GENERATOR,
)
from asgi_perfkit.resources.tickets import ABSENT, Making, Ticket, joined, made_around, makes
from asgi_perfkit.steps.loop import asyncio_loop
from asgi_perfkit.tasks.loop import Flag
from asgi_perfkit.tasks.running import running_loop

__all__ = ["continuation", "is_concurrent", "join_plan"]

_UNSET: Any = object()

Changes = dict[ContextVar[Any], Any]


def is_concurrent(plan: Plan) -> bool:
    """Whether something in it asks for a task of its own."""
    return any(node.concurrent for node in plan.nodes)


def join_plan(plan: Plan, caches: Caches, *, all_of_it: bool) -> Solver:
    """The function that carries out a `plan`.

    :param caches: where those of other plans are found.
    :param all_of_it: whether everything that can be is concurrent.
    """
    recipe = _Recipe(plan, caches, all_of_it=all_of_it)

    async def solve(manager: Any, account: Any, func: Any, values: Any) -> Any:
        started_ns = perf_counter_ns()
        begin(manager)
        attempt = Attempt(manager)
        app = need_app(manager) if recipe.has_app else None
        run = _Run(recipe, attempt, manager, app, account, values)
        try:
            await run.carry_out()
        except BaseException as error:
            await attempt.fail(error)
            raise
        finally:
            manager.active -= 1
        if account is not None:
            account.observe(METRIC, perf_counter_ns() - started_ns)
        return await recipe.finish(manager, func, run.made, values)

    return solve


def continuation(plan: Plan, caches: Caches) -> Callable[..., Coroutine[Any, Any, None]]:
    """A function that carries out the rest of a `plan` whose resolution is not the only one of the request any more."""
    recipe: _Recipe | None = None

    async def go_on(
        manager: ResourceManager, account: Any, ledger: Ledger, attempt: Attempt | None
    ) -> None:
        nonlocal recipe
        if recipe is None:
            recipe = _Recipe(plan, caches, all_of_it=False)
        _, made, values, _ = ledger
        settle(manager, ledger, None)
        await _Run(recipe, attempt, manager, None, account, values, made).carry_out()

    return go_on


class _Recipe:
    """What all runs of a plan have in common.

    :ivar makers: for each node, a function that begins its call.
    :ivar keys: for each node that is kept, a function that makes the key of its value.
    """

    def __init__(self, plan: Plan, caches: Caches, *, all_of_it: bool) -> None:
        self.nodes = nodes = plan.nodes
        numbers = {node: number for number, node in enumerate(nodes)}
        self.sources = [[numbers[each] for each in node.sources()] for node in nodes]
        self.wanted = [numbers[each] for each in plan.root.sources()]
        self.dependents: list[list[int]] = [[] for _ in nodes]
        for number, sources in enumerate(self.sources):
            for source in sources:
                self.dependents[source].append(number)
        # What neither waits nor is to stay in order does not hold up what depends on it.
        self.beside: list[bool] = []
        for number, node in enumerate(nodes):
            beside = node.concurrent
            if all_of_it and not beside:
                beside = node.kind in (ASYNC, THREAD) or (
                    node.kind == INLINE and any(self.beside[each] for each in self.sources[number])
                )
            self.beside.append(beside)
        self.has_app = any(node.lifetime == "app" for node in nodes)
        self.caches: list[Any] = []
        self.makers: list[Callable[..., Any]] = []
        self.keys: list[Callable[..., Hashable] | None] = []
        names = Names(plan, "made[{}]")
        namespace = namespace_of(plan, caches)
        for number, node in enumerate(nodes):
            self.caches.append(namespace.get(f"t{number}"))
            self.makers.append(self._function(_expression(names, node), namespace))
            kept = node.use_cache or node.ttl is not None
            self.keys.append(self._function(names.key(node), namespace) if kept else None)
        self.finish = _finish(plan, names, namespace)

    @staticmethod
    def _function(expression: str, namespace: dict[str, Any]) -> Any:
        source = f"def make(manager, keeper, made, values):\n    return {expression}\n"
        return run_code(source, namespace, "make")


def _expression(names: Names, node: Node) -> str:
    number = names.numbers[node]
    if node.ttl is not None:
        return names.deferred(node)
    arguments = names.arguments(node)
    if node.kind == THREAD:
        return f"run_in_threadpool({names.in_thread(node, f'c{number}')})"
    if node.kind == THREAD_GENERATOR:
        return f"keeper.enter(m{number}({arguments}))"
    return f"c{number}({arguments})"


def _finish(plan: Plan, names: Names, namespace: dict[str, Any]) -> Callable[..., Any]:
    """A function that calls the root."""
    root = plan.root
    arguments = names.arguments(root)
    if root.kind == THREAD:
        call = f"await run_in_threadpool({names.in_thread(root, 'func')})"
    elif root.kind == THREAD_GENERATOR:
        call = f"await manager.enter(contextmanager(func)({arguments}))"
    elif root.kind in GENERATORS:
        call = f"await manager.open_made(func({arguments}))"
    else:
        call = f"{'await ' if root.kind == ASYNC else ''}func({arguments})"
    source = f"async def finish(manager, func, made, values):\n    return {call}\n"
    function: Callable[..., Any] = run_code(source, namespace, "finish")
    return function


class _Run:
    """One resolution.

    :ivar made: the values, by the number of their node.
    """

    def __init__(
        self,
        recipe: _Recipe,
        attempt: Attempt | None,
        manager: ResourceManager,
        app: ResourceManager | None,
        account: Any,
        values: Any,
        made: list[Any] | None = None,
    ) -> None:
        self._recipe = recipe
        self._attempt = attempt
        self._manager = manager
        self._app = app
        self._account = account
        self._values = values
        number = len(recipe.nodes)
        self.made: list[Any] = [ABSENT] * number if made is None else made
        # How many sources of those that are needed are not made yet; of others it does not matter.
        self._missing = [-1] * number
        self._changes: list[Changes] = [{}] * number
        self._needed: list[int] = []
        self._finished: list[int] = []
        self._adopted = 0
        self._error: BaseException | None = None
        self._stopped = False
        self._flag: Flag | None = None
        self._awaited: int | None = None  # which node is next in the task that asked
        self._jobs = _jobs(self._task_ended)

    async def carry_out(self) -> None:
        recipe = self._recipe
        self._look()
        try:
            for number in self._needed:
                if recipe.beside[number] and not self._missing[number]:
                    self._start(number)
            for number in self._needed:
                if recipe.beside[number]:
                    continue
                self._awaited = number
                while self._missing[number] and self._error is None:
                    await self._next()
                if self._error is not None:
                    break
                await self._make_here(number)
            self._awaited = None
            while len(self._finished) < len(self._needed) and self._error is None:
                await self._next()
            if self._error is not None:
                raise self._error
            self._adopt()
        except GeneratorExit:  # this coroutine is being closed, and may not await any more
            self._stopped = True
            self._jobs.cancel()
            raise
        except BaseException:
            self._stopped = True
            if self._jobs.running:
                self._jobs.cancel()
                await shielded(self._end())
            raise
        finally:
            self._error = None  # its traceback may hold this frame
            del self._jobs  # they hold this object: nothing is left for the garbage collection

    def _look(self) -> None:
        """Find out what is there, and what has to be made."""
        recipe = self._recipe
        wanted = set(recipe.wanted)
        there = set()
        for number in range(len(recipe.nodes) - 1, -1, -1):
            if number not in wanted:
                continue
            node = recipe.nodes[number]
            if self.made[number] is not ABSENT:
                there.add(number)
                continue
            if node.ttl is None and node.use_cache:
                value = self._home(node).get(self._key(number), ABSENT)
                if value is not ABSENT and type(value) is not Ticket:
                    self.made[number] = value
                    there.add(number)
                    continue
            self._needed.append(number)
            wanted.update(recipe.sources[number])
        self._needed.reverse()
        for number in self._needed:
            sources = recipe.sources[number]
            self._missing[number] = sum(source not in there for source in sources)

    def _home(self, node: Node) -> dict[Hashable, Any]:
        if node.lifetime == "app":
            assert self._app is not None
            return self._app.solved
        return self._manager.solved

    def _key(self, number: int) -> Hashable:
        key = self._recipe.keys[number]
        assert key is not None
        return key(self._manager, None, self.made, self._values)

    @makes
    async def _make(self, number: int) -> Any:
        """The value of a node all of whose sources are there."""
        recipe = self._recipe
        node = recipe.nodes[number]
        if node.ttl is not None:
            cache, key = recipe.caches[number], self._key(number)
            value = cache.find(key)
            if value is MISSING:
                value = await cache.afetch(key, self._maker(number))
            return value
        if not node.use_cache:
            return await self._call(number)
        home, key = self._home(node), self._key(number)
        value = home.get(key, ABSENT)
        if value is ABSENT or (
            type(value) is Ticket and (value := await joined(home, key)) is ABSENT
        ):
            ticket = home[key] = Ticket()
            making = Making(ticket, node.name, str)
            token = made_around.set(making)
            try:
                value = await self._call(number)
            except BaseException as error:
                ticket.fail(home, key, error)
                raise
            finally:
                making.end(token)
            home[key] = value
            if ticket:
                ticket.wake()
        return value

    def _maker(self, number: int) -> Any:
        keeper = self._app if self._recipe.nodes[number].lifetime == "app" else self._manager
        return self._recipe.makers[number](self._manager, keeper, self.made, self._values)

    async def _call(self, number: int) -> Any:
        node = self._recipe.nodes[number]
        asked_ns = perf_counter_ns() if node.measure else 0
        call = self._maker(number)
        if node.kind == INLINE:
            value = call
        elif node.kind not in (ASYNC_GENERATOR, INLINE_GENERATOR):
            value = await call
        else:
            keeper = self._app if node.lifetime == "app" else self._manager
            assert keeper is not None
            if keeper.is_apart():
                call = Apart(call)
            try:
                value = next(call) if node.kind == INLINE_GENERATOR else await call.__anext__()
            except (StopAsyncIteration, StopIteration):
                raise not_yielded(node.name) from None
            await keeper.keep(call)
        if node.kind in GENERATORS and node.lifetime == "request" and self._attempt is not None:
            self._attempt.opened += 1
        if node.measure and self._account is not None:
            self._account.observe(f"depends {node.name}", perf_counter_ns() - asked_ns)
        return value

    # In the task that asked.

    async def _make_here(self, number: int) -> None:
        self._adopt()
        before = copy_context()
        value = await self._make(number)
        self._finish(number, value, before)
        self._adopted += 1  # itself, which is set here already

    def _adopt(self) -> None:
        """Set here what was set in tasks meanwhile."""
        finished = self._finished
        while self._adopted < len(finished):
            for var, value in self._changes[finished[self._adopted]].items():
                if var.get(_UNSET) is not value:
                    var.set(value)
            self._adopted += 1

    async def _next(self) -> None:
        """Wait until there is something to do here; each time that this task runs costs as much as another one."""
        self._flag = running_loop().flag()
        await self._flag.wait()

    def _wake(self) -> None:
        if self._flag is not None:
            self._flag.set()

    def _task_ended(self) -> None:
        if self._stopped:
            self._wake()

    async def _end(self) -> None:
        while self._jobs.running:
            await self._next()

    # In the other tasks.

    def _start(self, number: int) -> None:
        self._jobs.start(number, self._make_beside)

    async def _make_beside(self, number: int) -> None:
        try:
            for source in self._recipe.sources[number]:
                for var, value in self._changes[source].items():
                    if var.get(_UNSET) is not value:
                        var.set(value)
            before = copy_context()
            self._finish(number, await self._make(number), before)
        except GeneratorExit:
            raise
        except BaseException as error:
            if self._error is None:
                self._error = error
                self._wake()

    def _finish(self, number: int, value: Any, before: Context) -> None:
        """Note a `value`, and start what it was the last source of."""
        recipe = self._recipe
        self.made[number] = value
        changes: Changes = {}
        for source in recipe.sources[number]:
            changes.update(self._changes[source])
        for var, current in copy_context().items():
            if before.get(var, _UNSET) is not current:
                changes[var] = current
        self._changes[number] = changes
        self._finished.append(number)
        for dependent in recipe.dependents[number]:
            self._missing[dependent] -= 1
            if (
                not self._missing[dependent]
                and recipe.beside[dependent]
                and not self._stopped
                and self._error is None
            ):
                self._start(dependent)
        awaited = self._awaited
        if (
            not self._missing[awaited]
            if awaited is not None
            else len(self._finished) == len(self._needed)
        ):
            self._wake()


class _AsyncioJobs:
    """The tasks of a run.

    :ivar running: those that have not ended, by number.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._wake = wake
        self.running: dict[int, asyncio.Task[None]] = {}

    def start(self, number: int, work: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        task = self._loop.create_task(work(number))
        self.running[number] = task
        task.add_done_callback(lambda _: self._ended(number))

    def _ended(self, number: int) -> None:
        del self.running[number]
        self._wake()

    def cancel(self) -> None:
        for task in self.running.values():
            task.cancel()


class _TrioJobs:
    """The same on trio: tasks of the system's, as a nursery here would be around what generators have entered."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.running: dict[int, Any] = {}

    def start(self, number: int, work: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        trio = sys.modules["trio"]
        cancel_scope = self.running[number] = trio.CancelScope()

        async def run() -> None:
            try:
                with cancel_scope:
                    await work(number)
            finally:
                del self.running[number]
                self._wake()

        trio.lowlevel.spawn_system_task(run, context=copy_context())

    def cancel(self) -> None:
        for cancel_scope in self.running.values():
            cancel_scope.cancel()


def _jobs(wake: Callable[[], None]) -> _AsyncioJobs | _TrioJobs:
    loop = asyncio_loop()
    return _TrioJobs(wake) if loop is None else _AsyncioJobs(loop, wake)
