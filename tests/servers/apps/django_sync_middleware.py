"""The Django sample below a synchronous middleware, which waits in its thread for the asynchronous view."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse


def note_thread(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Tell in a header which thread this is."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["x-middleware-thread"] = str(threading.get_ident())
        return response

    return middleware


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
settings.MIDDLEWARE.append(f"{__name__}.note_thread")

import django_threads  # noqa: E402 - makes the application, out of these settings

app = django_threads.app
