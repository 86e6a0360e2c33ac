from __future__ import annotations

from django.urls import include, path

from shop import views

urlpatterns = [
    path("items/", views.items),
    path("items/<int:item_id>", views.item),
    path("shop/<int:shop_id>/", include("shop.urls")),
    path("sales/", views.sales),
    path("sales/<int:item_id>", views.sales_of),
    path("receipts/", views.receipts),
    path("receipts/<int:sale_id>", views.receipt),
    path("orders/<int:item_id>", views.order),
    path("prices/<currency>", views.prices),
    path("offers/<currency>", views.offer),
    path("wait", views.wait),
    path("block", views.block),
    path("freeze", views.freeze),
    path("supplies", views.supplies),
    path("labels", views.labels),
    path("sync", views.sync),
    path("stream", views.stream),
    path("upload", views.upload),
    path("error", views.error),
    path("after", views.after),
    path("stats", views.stats),
    path("profile", views.profiles),
    path("profile/allocations", views.profile_memory),
    path("profile/<name>", views.profile_cpu),
]
