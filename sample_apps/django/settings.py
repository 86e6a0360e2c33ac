"""The shop's settings; two of them come from the environment.

SHOP_DATABASE    where the SQLite file is (default: shop.sqlite3 in this folder)
SHOP_SECRET_KEY  Django's secret key (default: a new one at every start)
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent

SECRET_KEY = os.environ.get("SHOP_SECRET_KEY") or secrets.token_urlsafe(50)
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]

INSTALLED_APPS = ["shop"]
MIDDLEWARE = [
    "asgi_perfkit.metrics.endpoints.django_endpoint",
    "django.middleware.common.CommonMiddleware",
]
ROOT_URLCONF = "urls"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE") or BASE_DIR / "shop.sqlite3",
        "OPTIONS": {
            # Whoever exports keeps nobody from selling; who sells waits for who sells already.
            "init_command": "PRAGMA journal_mode = wal",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django": {"handlers": ["console"], "level": "ERROR", "propagate": False}},
}
