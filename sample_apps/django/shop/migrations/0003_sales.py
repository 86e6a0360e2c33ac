"""Open a web shop, and make the book of sales, with some to begin with."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import django.db.models.deletion
from django.db import migrations, models

PRICES = {1: Decimal("24.50"), 2: Decimal("31.00"), 3: Decimal("7.25")}
STOCK = {1: 100_000, 2: 100_000, 3: 10}


def fill(apps: Any, schema_editor: Any) -> None:
    shop, stock, sale = (apps.get_model("shop", name) for name in ("Shop", "Stock", "Sale"))
    web_shop = shop.objects.create(pk=3, name="Web")
    stock.objects.bulk_create(
        stock(shop=web_shop, item_id=item_id, quantity=quantity)
        for item_id, quantity in STOCK.items()
    )
    items = (number % len(PRICES) + 1 for number in range(1, 50_000 + 1))
    sale.objects.bulk_create(sale(item_id=item_id, price=PRICES[item_id]) for item_id in items)


def empty(apps: Any, schema_editor: Any) -> None:
    apps.get_model("shop", "Shop").objects.filter(pk=3).delete()


class Migration(migrations.Migration):
    dependencies = [("shop", "0002_catalogue")]

    operations = [
        migrations.CreateModel(
            name="Sale",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("price", models.DecimalField(decimal_places=2, max_digits=8)),
                (
                    "item",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to="shop.item"),
                ),
            ],
        ),
        migrations.RunPython(fill, empty),
    ]
