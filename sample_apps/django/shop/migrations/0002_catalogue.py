"""Fill the shop, so that there is something to sell."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.db import migrations

ITEMS = {1: ("kettle", "24.50"), 2: ("teapot", "31.00"), 3: ("cup", "7.25")}
SHOPS = {1: "High Street", 2: "Station"}


def fill(apps: Any, schema_editor: Any) -> None:
    item, shop, stock = (apps.get_model("shop", name) for name in ("Item", "Shop", "Stock"))
    item.objects.bulk_create(
        item(pk=pk, name=name, price=Decimal(price)) for pk, (name, price) in ITEMS.items()
    )
    shop.objects.bulk_create(shop(pk=pk, name=name) for pk, name in SHOPS.items())
    stock.objects.bulk_create(
        stock(shop_id=shop_pk, item_id=item_pk, quantity=shop_pk * item_pk)
        for shop_pk in SHOPS
        for item_pk in ITEMS
    )


def empty(apps: Any, schema_editor: Any) -> None:
    for name in ("Stock", "Shop", "Item"):
        apps.get_model("shop", name).objects.all().delete()


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]

    operations = [migrations.RunPython(fill, empty)]
