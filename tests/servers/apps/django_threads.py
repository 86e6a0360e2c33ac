"""The Django sample with a view that tells which threads its code runs in."""

from __future__ import annotations

import threading

from asgiref.sync import sync_to_async
from django.http import HttpRequest, JsonResponse
from django.urls import path

import app as sample
import urls
from asgi_perfkit import run_in_threadpool


async def threads(request: HttpRequest) -> JsonResponse:
    return JsonResponse(
        {
            "django": await sync_to_async(threading.get_ident)(),
            "sensitive": await run_in_threadpool(threading.get_ident, thread_sensitive=True),
            "own": await run_in_threadpool(threading.get_ident),
        }
    )


urls.urlpatterns.append(path("threads", threads))
app = sample.app
