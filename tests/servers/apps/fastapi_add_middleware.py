"""The FastAPI sample with the middleware added the framework's own way."""

from __future__ import annotations

from fastapi import FastAPI

from app import lifespan, router, shop
from asgi_perfkit import PerformanceMiddleware

app = FastAPI(lifespan=lifespan)
app.add_middleware(PerformanceMiddleware)
app.include_router(router)
app.include_router(shop)
