from __future__ import annotations

from django.apps import AppConfig
from django.db import close_old_connections
from django.db.backends.signals import connection_created

from asgi_perfkit import default_limiter, django_query_wrapper


class ShopConfig(AppConfig):
    name = "shop"

    def ready(self) -> None:
        # At the end of a request Django closes the connections of its own threads. Those of the kit's threads, which
        # work for all requests, are closed around each call: by the rules of CONN_MAX_AGE, which is 0 unless the
        # settings say otherwise. Above 0 each thread would keep one, as long as it is no older than that.
        limiter = default_limiter()
        limiter.before = limiter.after = close_old_connections

        # Each connection tells what is sent by it.
        connection_created.connect(django_query_wrapper.install)
