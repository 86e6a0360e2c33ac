"""A small shop in Django, with a real database, measured by PerfKit.

Make the database and run it, from this folder, then read http://127.0.0.1:8000/stats:

    python manage.py migrate && hypercorn app:application
"""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import close_old_connections

from asgi_perfkit import PerfKit, exact_by_header

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

django_app = get_asgi_application()

from shop.streams import STREAMS  # noqa: E402  # models can be imported once Django is set up


async def with_streams(scope: Any, receive: Any, send: Any) -> None:
    stream = STREAMS.get(scope["path"]) if scope["type"] == "http" else None
    await (stream or django_app)(scope, receive, send)


# Always on. Requests count as slow from a quarter of a second on, so that there is something to see.
profiling: dict[str, Any] = {"slow_threshold": 0.25}
if secret := settings.PROFILE_SECRET:
    profiling["exact"] = exact_by_header("x-profile", secret)

# Tasks that are plain functions have worker threads of their own, whose connections are closed around each task, as
# shop/apps.py has it for the other threads.
application = PerfKit(
    with_streams,
    background={"task_hooks": (close_old_connections, close_old_connections)},
    encoder={"compression": True},
    profiling=profiling,
)
app = application  # the name that the other samples have
