from __future__ import annotations

from typing import Any

from django.db import models


class Item(models.Model):
    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)

    def as_dict(self) -> dict[str, Any]:
        return {"id": self.pk, "name": self.name, "price": float(self.price)}


class Shop(models.Model):
    name = models.CharField(max_length=100)


class Stock(models.Model):
    shop = models.ForeignKey(Shop, on_delete=models.CASCADE)
    item = models.ForeignKey(Item, on_delete=models.CASCADE)
    quantity = models.PositiveIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["shop", "item"], name="one_stock_per_shop")]


class Sale(models.Model):
    item = models.ForeignKey(Item, on_delete=models.CASCADE)
    price = models.DecimalField(max_digits=8, decimal_places=2)
