"""The apps that are wrapped, and everything that wraps them: this kit and its peers, each set up as
its documentation says.

A `Site` is an app and the requests made to it. A `Contender` is a site's app, wrapped and ready to
serve, and can say how many requests it has recorded. The benchmarks ask that after each run: a peer
that was set up wrongly would record nothing, be cheap, and make the comparison a lie.

Whatever a peer can be spared is spared: the timing-asgi client only counts, OpenTelemetry traces
nothing and exports nothing, every peer with a registry has the usual one of its library.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asgi_perfkit import PerfKit, PerformanceMiddleware, Registry, get_performance_stats

__all__ = [
    "ASGIApp",
    "Contender",
    "Site",
    "absent_peers",
    "bare_app",
    "baselines",
    "contenders",
    "kit",
    "kit_contenders",
    "lifespan_of",
    "peers",
    "receive",
    "scope_for",
    "send",
    "starlette_app",
]

Message = dict[str, Any]
ASGIApp = Callable[
    [dict[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Any
]

BODY = b"Hello, world"
_serial = itertools.count()
REQUEST = {"type": "http.request", "body": b"", "more_body": False}


@dataclass(frozen=True)
class Site:
    """An app, and the requests that a benchmark makes to it.

    :param make_app: makes one more app of the kind; every contender gets its own.
    :param pattern: the path of the requests, with `{n}` where each has a number of its own.
    :param template: the name under which a contender that knows routes files them.
    :param group: the prefix under which a contender that has a list of prefixes files them.
    """

    name: str
    make_app: Callable[[], ASGIApp]
    pattern: str
    template: str
    group: str

    def paths(self) -> Iterator[str]:
        """Return the paths of the requests, without end."""
        if "{n}" not in self.pattern:
            return itertools.repeat(self.pattern)
        return (self.pattern.replace("{n}", str(number)) for number in itertools.count(1))


@dataclass(frozen=True)
class Contender:
    """Something that serves requests.

    :param recorded: the number of requests that the contender's own metrics hold; None when it
        keeps none.
    """

    name: str
    app: ASGIApp
    recorded: Callable[[], float] | None = None


def bare_app() -> ASGIApp:
    """Return a raw ASGI app that answers at once: a start and a body, both made anew, as an app
    does.
    """

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/plain"), (b"content-length", b"12")],
            }
        )
        await send({"type": "http.response.body", "body": BODY})

    return app


def starlette_app() -> ASGIApp:
    """Return a Starlette app: a plain route, one with a path parameter, one that does some work."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse(BODY)

    async def item(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.path_params["item_id"])

    async def rows(request: Request) -> JSONResponse:
        return JSONResponse(
            [
                {"id": n, "name": f"Item {n}", "price": n * 1.5, "tags": ["a", "b"], "sold": n % 3}
                for n in range(100)
            ]
        )

    routes = [Route("/hello", hello), Route("/items/{item_id}", item), Route("/rows", rows)]
    return Starlette(routes=routes)


def scope_for(path: str) -> dict[str, Any]:
    """Return a scope such as hypercorn makes for a small GET, new in every part that an app may
    change.
    """
    return {
        "type": "http",
        "http_version": "1.1",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("ascii"),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"127.0.0.1:8000"),
            (b"user-agent", b"benchmark"),
            (b"accept", b"*/*"),
            (b"accept-encoding", b"gzip, deflate"),
            (b"connection", b"keep-alive"),
        ],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
        "extensions": {},
    }


@contextlib.asynccontextmanager
async def lifespan_of(app: ASGIApp) -> AsyncIterator[None]:
    """Live as a server does: `app` is started, and shut down at the end."""
    told: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    answers: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    life = asyncio.ensure_future(app({"type": "lifespan", "asgi": {}}, told.get, answers.put))
    told.put_nowait({"type": "lifespan.startup"})
    await answers.get()
    yield
    told.put_nowait({"type": "lifespan.shutdown"})
    await answers.get()
    await life


async def receive() -> Message:
    """Hand over an empty request body, as a server with nothing to wait for."""
    return REQUEST


async def send(message: Message) -> None:
    """Take a message, as a server whose socket has room."""


def contenders(site: Site) -> list[Contender]:
    """Return one contender of each kind, the unwrapped app first; peers that are not installed are
    left out.
    """
    return [*baselines(site), *kit_contenders(site), *peers(site)]


def baselines(site: Site) -> list[Contender]:
    """Return the unwrapped app, and the least that any middleware which looks at responses can
    cost.
    """
    inner = site.make_app()

    async def closure(scope: dict[str, Any], receive: Any, send: Any) -> None:
        async def pass_through(message: Message) -> None:
            await send(message)

        await inner(scope, receive, pass_through)

    return [Contender("unwrapped", site.make_app()), Contender("closure around send", closure)]


def kit(
    name: str,
    wrap: Callable[..., ASGIApp],
    site: Site,
    options: Mapping[str, Any] | None = None,
) -> Contender:
    """Return `wrap(app, **options)` with a registry of its own, so that its count is its own."""
    registry = Registry()
    settings = dict(options or {}, registry=registry)
    arguments = {"performance": settings} if wrap is PerfKit else settings

    def recorded() -> float:
        return get_performance_stats(registry=registry)["total_time"]["count"]

    return Contender(name, wrap(site.make_app(), **arguments), recorded)


def kit_contenders(site: Site) -> list[Contender]:
    """Return the kit's two faces with their defaults."""
    return [
        kit("PerformanceMiddleware", PerformanceMiddleware, site),
        kit("PerfKit", PerfKit, site),
    ]


def peers(site: Site) -> list[Contender]:
    """Return the peers that are installed, from the one that does least to the one that does most."""
    found = []
    for make in PEERS.values():
        # A peer need not exist for every Python that the kit supports; the table then has one row
        # less, and says so.
        with contextlib.suppress(ImportError):
            found.append(make(site))
    return found


def absent_peers(present: Iterable[Contender]) -> list[str]:
    """Return the names of the peers that are not among `present`."""
    names = {contender.name for contender in present}
    return [name for name in PEERS if name not in names]


def timing_asgi(site: Site) -> Contender:
    from timing_asgi import TimingClient, TimingMiddleware
    from timing_asgi.integrations import StarletteScopeToName

    class CountingClient(TimingClient):  # type: ignore[misc]
        calls = 0

        def timing(self, metric_name: str, timing: float, tags: list[str]) -> None:
            self.calls += 1

    client = CountingClient()
    app = site.make_app()
    if hasattr(app, "add_middleware"):
        namer = StarletteScopeToName(prefix="bench", starlette_app=app)
        app.add_middleware(TimingMiddleware, client=client, metric_namer=namer)
    else:
        app = TimingMiddleware(app, client=client)
    # Wall time and CPU time: two calls a request.
    return Contender("timing-asgi", app, lambda: client.calls / 2)


def asgi_prometheus(site: Site) -> Contender:
    import asgi_prometheus
    from prometheus_client import REGISTRY

    # Its metrics are the module's own, so earlier contenders of this kind have counted into them
    # too.
    labels = {"method": "GET", "path": f"{site.group}*"}

    def count() -> float:
        return REGISTRY.get_sample_value("requests_time_count", labels) or 0.0

    before = count()
    app = asgi_prometheus.PrometheusMiddleware(site.make_app(), group_paths=[site.group])
    return Contender("asgi-prometheus", app, lambda: count() - before)


def starlette_exporter(site: Site) -> Contender:
    from prometheus_client import REGISTRY
    from starlette_exporter import PrometheusMiddleware

    app = site.make_app()
    # The name is a label of every series: a new one, so that the count is this contender's.
    app_name = f"bench-{next(_serial)}"
    if hasattr(app, "add_middleware"):
        app.add_middleware(PrometheusMiddleware, app_name=app_name)
    else:
        # With its default it drops every request whose scope has no router, which is all of a raw
        # app's.
        app = PrometheusMiddleware(app, app_name=app_name, filter_unhandled_paths=False)
    labels = {"method": "GET", "path": site.template, "status_code": "200", "app_name": app_name}

    def recorded() -> float:
        return REGISTRY.get_sample_value("starlette_request_duration_seconds_count", labels) or 0.0

    return Contender("starlette_exporter", app, recorded)


def fastapi_instrumentator(site: Site) -> Contender:
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator
    from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware

    # A second one on the default registry finds its names taken, and records nothing without a
    # word.
    registry = CollectorRegistry()
    app = site.make_app()
    if hasattr(app, "add_middleware"):
        Instrumentator(registry=registry).instrument(app)
    else:
        app = PrometheusInstrumentatorMiddleware(app, registry=registry)

    def recorded() -> float:
        return registry.get_sample_value("http_request_duration_highr_seconds_count") or 0.0

    return Contender("prometheus-fastapi-instrumentator", app, recorded)


def opentelemetry(site: Site) -> Contender:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.trace import NoOpTracerProvider

    reader = InMemoryMetricReader()
    app = OpenTelemetryMiddleware(
        site.make_app(),
        meter_provider=MeterProvider(metric_readers=[reader], shutdown_on_exit=False),
        tracer_provider=NoOpTracerProvider(),
    )

    def recorded() -> float:
        data = reader.get_metrics_data()
        if data is None:
            return 0.0
        return sum(
            point.count
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name in ("http.server.duration", "http.server.request.duration")
            for point in metric.data.data_points
        )

    return Contender("opentelemetry (metrics)", app, recorded)


PEERS: Mapping[str, Callable[[Site], Contender]] = {
    "timing-asgi": timing_asgi,
    "asgi-prometheus": asgi_prometheus,
    "starlette_exporter": starlette_exporter,
    "prometheus-fastapi-instrumentator": fastapi_instrumentator,
    "opentelemetry (metrics)": opentelemetry,
}
