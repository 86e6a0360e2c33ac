"""A small shop in Django, with a real database, measured by PerfKit.

Make the database and run it, from this folder, then read http://127.0.0.1:8000/stats:

    python manage.py migrate && hypercorn app:application
"""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application
from django.db import close_old_connections

from asgi_perfkit import PerfKit

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

# Tasks that are plain functions have worker threads of their own, whose connections are closed around each task, as
# shop/apps.py has it for the other threads.
application = PerfKit(
    get_asgi_application(),
    background={"task_hooks": (close_old_connections, close_old_connections)},
)
app = application  # the name that the other samples have
