"""A small shop in Django, with a real database, measured by PerfKit.

Make the database and run it, from this folder, then read http://127.0.0.1:8000/stats:

    python manage.py migrate && hypercorn app:application
"""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

from asgi_perfkit import PerfKit

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

application = PerfKit(get_asgi_application())
app = application  # the name that the other samples have
