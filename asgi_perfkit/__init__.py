"""asgi_perfkit: a performance kit for any ASGI application.

Wrap the app, run it behind hypercorn, and know where every millisecond and megabyte went::

    app = PerfKit(app)
    get_performance_stats(by="endpoint")
"""

from asgi_perfkit.exceptions import (
    ConfigurationError,
    NoRequestError,
    PerfKitError,
    QueueFullError,
)
from asgi_perfkit.metrics.registry import Registry, default_registry
from asgi_perfkit.metrics.runtime import get_runtime_stats
from asgi_perfkit.metrics.spans import measure
from asgi_perfkit.metrics.statistics import get_performance_stats, reset_performance_stats
from asgi_perfkit.middleware.background import BackgroundTaskMiddleware
from asgi_perfkit.middleware.performance import PerformanceMiddleware
from asgi_perfkit.stack import PerfKit
from asgi_perfkit.tasks.adding import add_task
from asgi_perfkit.tasks.item import task_options
from asgi_perfkit.tasks.lists import BackgroundTasks, BatchedBackgroundTasks
from asgi_perfkit.tasks.supervisor import TaskFailure
from asgi_perfkit.threads.functions import run_in_threadpool
from asgi_perfkit.threads.iterators import iterate_in_threadpool
from asgi_perfkit.threads.limiter import ThreadLimiter, default_limiter
from asgi_perfkit.threads.managers import contextmanager_in_threadpool

__version__ = "0.1.0"

__all__ = [
    "BackgroundTaskMiddleware",
    "BackgroundTasks",
    "BatchedBackgroundTasks",
    "ConfigurationError",
    "NoRequestError",
    "PerfKit",
    "PerfKitError",
    "PerformanceMiddleware",
    "QueueFullError",
    "Registry",
    "TaskFailure",
    "ThreadLimiter",
    "add_task",
    "contextmanager_in_threadpool",
    "default_limiter",
    "default_registry",
    "get_performance_stats",
    "get_runtime_stats",
    "iterate_in_threadpool",
    "measure",
    "reset_performance_stats",
    "run_in_threadpool",
    "task_options",
]
