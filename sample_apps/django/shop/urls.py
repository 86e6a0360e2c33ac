"""What lies under /shop/<shop_id>/."""

from __future__ import annotations

from django.urls import path

from shop import views

urlpatterns = [path("items/<int:item_id>", views.stock)]
