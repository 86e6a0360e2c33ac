"""The Django sample as it would be had nobody set the limiter's hooks."""

from __future__ import annotations

import app as sample
from asgi_perfkit import default_limiter

default_limiter().before = default_limiter().after = None
app = sample.app
