"""asgi_perfkit: a performance kit for any ASGI application.

Wrap the app, run it behind hypercorn, and know where every millisecond and megabyte went::

    app = PerfKit(app)
    get_performance_stats(by="endpoint")
"""

from asgi_perfkit.caching.cached import cached
from asgi_perfkit.caching.request import RequestScopedCache
from asgi_perfkit.encoding.encoder import Encoder, dumps
from asgi_perfkit.encoding.events import Event
from asgi_perfkit.endpoint.app import endpoint
from asgi_perfkit.endpoint.intake import BodyStream
from asgi_perfkit.endpoint.markers import Body, Form, Header, Path, Query
from asgi_perfkit.endpoint.uploads import UploadFile
from asgi_perfkit.exceptions import (
    AlreadyProfilingError,
    BodyTooLargeError,
    CleanupError,
    CleanupTimeoutError,
    ClientDisconnectedError,
    ConfigurationError,
    DependencyCycleError,
    DependencyError,
    EncodeError,
    InvalidRequestError,
    MalformedBodyError,
    NoRequestError,
    PerfKitError,
    QueueFullError,
    RequestError,
    ResourcesClosedError,
    UnsupportedBodyError,
)
from asgi_perfkit.metrics.registry import Registry, default_registry
from asgi_perfkit.metrics.runtime import get_runtime_stats
from asgi_perfkit.metrics.spans import measure
from asgi_perfkit.metrics.statistics import get_performance_stats, reset_performance_stats
from asgi_perfkit.middleware.background import BackgroundTaskMiddleware
from asgi_perfkit.middleware.encoder import ResponseEncoderMiddleware
from asgi_perfkit.middleware.exact import exact_by_header
from asgi_perfkit.middleware.performance import PerformanceMiddleware
from asgi_perfkit.middleware.profiling import ProfilingMiddleware
from asgi_perfkit.middleware.resources import ResourceMiddleware
from asgi_perfkit.profiling.exact_report import ExactReport, exact_profile
from asgi_perfkit.profiling.profiles import (
    Profiles,
    default_profiles,
    get_profile_stats,
    reset_profile_stats,
)
from asgi_perfkit.profiling.queries.asyncpg import asyncpg_query_logger
from asgi_perfkit.profiling.queries.dbapi import profile_connection
from asgi_perfkit.profiling.queries.django import django_query_wrapper
from asgi_perfkit.profiling.queries.sqlalchemy import profile_engine
from asgi_perfkit.profiling.session import ProfileReport, profile
from asgi_perfkit.profiling.tracing import AllocationReport, profile_allocations
from asgi_perfkit.resources.current import app_resources, current_resources
from asgi_perfkit.resources.manager import ResourceManager
from asgi_perfkit.resources.markers import Depends
from asgi_perfkit.resources.solver import dependency_overrides, resolve
from asgi_perfkit.responses import JSON, NDJSON, EventStream, JSONArray, send_json
from asgi_perfkit.stack import PerfKit
from asgi_perfkit.tasks.adding import add_task
from asgi_perfkit.tasks.engines import CeleryEngine, TaskiqEngine
from asgi_perfkit.tasks.failure import TaskFailure
from asgi_perfkit.tasks.handoff import Handoff
from asgi_perfkit.tasks.item import task_options
from asgi_perfkit.tasks.lists import BackgroundTasks, BatchedBackgroundTasks
from asgi_perfkit.threads.functions import run_in_threadpool
from asgi_perfkit.threads.iterators import iterate_in_threadpool
from asgi_perfkit.threads.limiter import ThreadLimiter, default_limiter
from asgi_perfkit.threads.managers import contextmanager_in_threadpool

__version__ = "0.1.0"

__all__ = [
    "AllocationReport",
    "AlreadyProfilingError",
    "BackgroundTaskMiddleware",
    "BackgroundTasks",
    "BatchedBackgroundTasks",
    "Body",
    "BodyStream",
    "BodyTooLargeError",
    "CeleryEngine",
    "CleanupError",
    "CleanupTimeoutError",
    "ClientDisconnectedError",
    "ConfigurationError",
    "DependencyCycleError",
    "DependencyError",
    "Depends",
    "EncodeError",
    "Encoder",
    "Event",
    "EventStream",
    "ExactReport",
    "Form",
    "Handoff",
    "Header",
    "InvalidRequestError",
    "JSON",
    "JSONArray",
    "MalformedBodyError",
    "NDJSON",
    "NoRequestError",
    "Path",
    "PerfKit",
    "PerfKitError",
    "PerformanceMiddleware",
    "ProfileReport",
    "Profiles",
    "ProfilingMiddleware",
    "Query",
    "QueueFullError",
    "Registry",
    "RequestError",
    "RequestScopedCache",
    "ResourceManager",
    "ResourceMiddleware",
    "ResourcesClosedError",
    "ResponseEncoderMiddleware",
    "TaskFailure",
    "TaskiqEngine",
    "ThreadLimiter",
    "UnsupportedBodyError",
    "UploadFile",
    "add_task",
    "app_resources",
    "asyncpg_query_logger",
    "cached",
    "contextmanager_in_threadpool",
    "current_resources",
    "default_limiter",
    "default_profiles",
    "default_registry",
    "dependency_overrides",
    "django_query_wrapper",
    "dumps",
    "endpoint",
    "exact_by_header",
    "exact_profile",
    "get_performance_stats",
    "get_profile_stats",
    "get_runtime_stats",
    "iterate_in_threadpool",
    "measure",
    "profile",
    "profile_allocations",
    "profile_connection",
    "profile_engine",
    "reset_performance_stats",
    "reset_profile_stats",
    "resolve",
    "run_in_threadpool",
    "send_json",
    "task_options",
]
