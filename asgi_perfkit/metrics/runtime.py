"""The state of the process, read on demand."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from asgi_perfkit.metrics.catalogue import SECONDS
from asgi_perfkit.metrics.registry import Registry, default_registry
from asgi_perfkit.metrics.statistics import summarize
from asgi_perfkit.tasks.supervisor import background_stats
from asgi_perfkit.threads.limiter import default_limiter
from asgi_perfkit.threads.pool import count_threads

__all__ = ["get_runtime_stats"]


def get_runtime_stats(*, registry: Registry | None = None) -> dict[str, Any]:
    """The state of this process now.

    ==================  =============================================================================================
    `event_loop_lag`    how much later than asked for the loop ran a timer (seconds; ``count``, ``sum``, ``avg``,
                        ``min``, ``max``, ``p50``, ``p90``, ``p95``, ``p99``); from the first request on
    `gc_pause`          how long garbage collections stopped the process (likewise)
    `process`           ``rss`` (bytes), ``cpu_percent`` (of one core, since the last call; 0.0 at the first),
                        ``threads``, ``open_files`` (descriptors; handles on Windows)
    `requests`          ``in_flight``: requests and connections that the app has not returned from
    `thread_pool`       ``threads`` of the kit's that live, ``idle_threads`` among them (asyncio and uvloop; on trio
                        they are trio's), and of the default limiter ``total_tokens``, ``borrowed_tokens``,
                        ``tasks_waiting``, ``exits``, ``rescued``: see :class:`~asgi_perfkit.ThreadLimiter`
    `background_tasks`  ``pending``, ``running``, ``done``, ``failed``, ``timed_out``, ``cancelled``, ``discarded``,
                        ``handed_off``, ``lost``; ``handoff_failed`` of those that ran here then, or are lost
    `metrics`           the kit about itself: ``series`` kept, ``overflowed`` (requests that found no row of their
                        own), ``squeezed`` (values counted in a neighbouring bucket for want of room),
                        ``malformed_messages``, ``resolver_failures``, ``server_timing_failures``, ``kit_failures``
    ==================  =============================================================================================

    `event_loop_lag` and `gc_pause` are there once there is something to tell.

    :param registry: where the middleware records, if not in the default registry.
    """
    registry = default_registry if registry is None else registry
    monitor = registry.monitor
    stats: dict[str, Any] = {}
    for name, histogram in (
        ("event_loop_lag", monitor.event_loop_lag),
        ("gc_pause", monitor.gc_pause),
    ):
        snapshot = histogram.snapshot()
        if snapshot.least is not None:
            stats[name] = summarize(snapshot, SECONDS)
    stats["process"] = monitor.process_stats()
    stats["requests"] = {"in_flight": len(registry.open)}
    threads, idle_threads = count_threads()
    stats["thread_pool"] = {
        "threads": threads,
        "idle_threads": idle_threads,
        **asdict(default_limiter().statistics()),
    }
    stats["background_tasks"] = background_stats()
    with registry.lock:
        rows = registry.series()
        stats["metrics"] = {
            "series": len(rows),
            "squeezed": sum(series.squeezed for series in rows),
            **registry.counters,
        }
    return stats
