"""Clients' data out of the folders of the cache, mapped into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedham_flwr.data import groups, recipes
from fedham_flwr.data.cache import array, meta_of
from fedham_flwr.data.client_data import SPLITS, ClientData
from fedham_flwr.data.kinds import series, table_decoding, words
from fedham_flwr.data.kinds import table as tables

SCALED = {"table": table_decoding.standardise, "series": series.standardise}
"""The kinds of data that each client scales by itself, and what does it."""


def opener(data: Path, clients: Path, pin: str = "") -> Callable[[int], ClientData]:
    """What opens the data of any client, by its number: maps the arrays, and cuts out the client's sample numbers.

    Args:
        data: the folder of the cache with the samples.
        clients: that with the clients, whose numbers lie client by client, split by split.
        pin: of `ClientData`.
    """
    meta, source = meta_of(clients), meta_of(data)
    kind = source["kind"]
    counts = np.array(meta["counts"])
    ends = counts.cumsum().reshape(counts.shape)
    indices = torch.from_numpy(array(clients / "indices.npy"))
    words = meta.get("shift", ())
    features, labels = (
        torch.from_numpy(array((clients if own else data) / name))
        for name, own in (
            ("features.npy", kind in SCALED or {*words} - {groups.NONE, groups.LABELS}),
            ("labels.npy", groups.LABELS in words),
        )
    )
    classes, named = tuple(source["classes"]), meta["names"]
    scaled = array(clients / "scaling.npy") if kind in SCALED else None
    columns = tables.columns_of(source["columns"]) if kind == "table" else ()
    more = {"kind": kind} | _of_kind(source)

    def opened(number: int) -> ClientData:
        pieces = zip(SPLITS, ends[number].tolist(), counts[number].tolist(), strict=True)
        splits = {name: indices[end - count : end] for name, end, count in pieces}
        scaling, recipe = None, recipes.of_client(source, None)
        if scaled is not None:
            mean, std = scaled[number].tolist()
            recipe["scaling"] = {"mean": mean, "std": std}
            if kind == "table":
                scaling = tables.Scaling(columns, tuple(mean), tuple(std))
                recipe = recipes.of_client(source, scaling)
        recipe |= groups.recipe_of(words, number)
        return ClientData(features, labels, splits, classes, named[number], scaling, recipe=recipe, pin=pin, **more)

    return opened


def _of_kind(source: Mapping[str, Any]) -> dict[str, Any]:
    """What clients must agree on of series and of texts with labels, and how many tokens there are of the latter."""
    if source["kind"] == "series":
        return {"agreed": tuple(source["recipe"]["channels"])}
    if source["kind"] == "tokens":
        return {"vocabulary": source["vocabulary"], "agreed": (f"tokens {words.digest(source['recipe'])}",)}
    return {}
