"""The shop's settings; four of them come from the environment.

SHOP_DATABASE        where the SQLite file is (default: shop.sqlite3 in this folder)
SHOP_MAIL_SERVER     host:port of the mail server (default: none, and mails are shown in the terminal)
SHOP_PROFILE_SECRET  in the header x-profile it has a request recorded call by call (default: none is)
SHOP_SECRET_KEY      Django's secret key (default: a new one at every start)
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import django

BASE_DIR = Path(__file__).resolve().parent

SECRET_KEY = os.environ.get("SHOP_SECRET_KEY") or secrets.token_urlsafe(50)
PROFILE_SECRET = os.environ.get("SHOP_PROFILE_SECRET")
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
# The same file for transactions that only read: those need not wait for who sells, nor keep him waiting.
DATABASES["reader"] = {**DATABASES["default"], "OPTIONS": {"timeout": 20}}

DEFAULT_FROM_EMAIL = "shop@example.org"
MAIL_HOST, _, MAIL_PORT = os.environ.get("SHOP_MAIL_SERVER", "").partition(":")
MAIL_BACKEND = f"django.core.mail.backends.{'smtp' if MAIL_HOST else 'console'}.EmailBackend"
MAIL_OPTIONS = {"host": MAIL_HOST, "port": int(MAIL_PORT or 25), "timeout": 10} if MAIL_HOST else {}
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": MAIL_BACKEND, "OPTIONS": MAIL_OPTIONS}}
else:
    EMAIL_BACKEND = MAIL_BACKEND
    EMAIL_HOST, EMAIL_PORT, EMAIL_TIMEOUT = MAIL_HOST, int(MAIL_PORT or 25), 10

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django": {"handlers": ["console"], "level": "ERROR", "propagate": False}},
}
