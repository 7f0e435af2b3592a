"""Recipes, as JSON: what turns raw rows of a source into features as they are stored, and what outputs mean.

The recipe of a data folder is in its `meta.json`, that of a client has its own scaling beside it, and the header of an
exported model has the client's under the key `recipe`, so that a model can be used where its training data are not:

    {"format": 1,                                  of this description
     "kind": "table",                              what raw rows are: image, table, text, series or own
     "columns": [...], "scaling": {...}, ...       what its kind of data needs
     "features": "table",                          what the stored features are, see `batches`
     "target": "class",                            what was learned
     "outputs": ["no", "yes"],                     what the network's outputs mean, in their order
     "labels": ["ill"]}                            the columns of a source that hold what was learned
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from fedham_flwr.core.errors import UserError
from fedham_flwr.data import groups
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.kinds import table as tables

if TYPE_CHECKING:
    import datasets

KEY = "recipe"
"""In `meta.json`, and in the header of a model file."""
FORMAT = 1
"""Of the description in a header; a file of a later one is refused."""
OWN = "own"
"""The kind of data that a function of a user's loads: no rows, but arrays as the function gives them."""
ENCODERS = {
    "image": "fedham_flwr.data.kinds.image:encode",
    "table": "fedham_flwr.data.kinds.table_decoding:encode",
    "text": "fedham_flwr.data.kinds.text:encode",
    "series": "fedham_flwr.data.kinds.series:encode",
}
"""Kind of data -> its `encode`, of rows and a recipe; imported when it is called."""


def of_client(meta: Mapping[str, Any], scaling: tables.Scaling | None) -> dict[str, Any]:
    """A client's recipe.

    Args:
        meta: what the `meta.json` of a data folder says.
        scaling: of a table, the client's own.
    """
    recipe = dict(meta.get(KEY) or {"kind": meta["kind"]})
    if scaling is not None:
        recipe |= {"columns": meta["columns"], "scaling": {"mean": [*scaling.mean], "std": [*scaling.std]}}
    return recipe | {"labels": meta.get("labels", [])}


def label(data: ClientData) -> dict[str, str]:
    """What the header of a client's exported model says of its data.

    Args:
        data: the client's.
    """
    recipe = data.recipe or {"kind": OWN, "labels": []}
    learned = {"features": data.kind, "target": data.target, "outputs": groups.outputs(data.classes, recipe)}
    table = data.scaling.label() if data.scaling else {}
    return {KEY: json.dumps({"format": FORMAT, **recipe, **learned}, ensure_ascii=False), **table}


def read(path: object, header: Mapping[str, str]) -> dict[str, Any]:
    """The recipe in the header of a model file.

    Args:
        path: of the file, for errors.
        header: its metadata.

    Raises:
        UserError: there is none, or it is of a later version of this package.
    """
    if KEY not in header:
        raise UserError(
            f"{path} does not say what turns raw rows into its inputs, since an earlier version of fedham-flwr wrote "
            "it: train it anew, or open it with load_model and make its inputs yourself"
        )
    found: dict[str, Any] = json.loads(header[KEY])
    if found.get("format") != FORMAT:
        raise UserError(
            f"{path} has a recipe of format {found.get('format')}, and this version of fedham-flwr knows {FORMAT}: "
            "update it"
        )
    return found


def settled(rows: datasets.Dataset, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe for parts of these rows: what is found out of all of them stands in it.

    Args:
        rows: all, of one file.
        recipe: a client's.
    """
    if recipe["kind"] != "table":
        return dict(recipe)
    from fedham_flwr.data.kinds.table_kinds import decimal_signs
    from fedham_flwr.data.kinds.table_settings import TableSettings

    if recipe.get("decimal"):
        return dict(recipe)  # the setting of the run
    (*_, sign), *_ = decimal_signs(rows, TableSettings(missing=" ".join(recipe.get("missing", ()))))
    return {**recipe, "decimal": "" if sign == "?" else sign}


def encode(rows: datasets.Dataset, recipe: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Features as they are stored, of raw rows.

    Args:
        rows: of any number.
        recipe: a client's.

    Raises:
        UserError: a row does not fit, or there is no such kind of data.
    """
    kind = recipe["kind"]
    if kind not in ENCODERS:
        what = "were loaded by a function of a user's own" if kind == OWN else f"are of the kind {kind}"
        raise UserError(
            f"the data of this model {what}, of which no rows can be read: give predict(...) an array of its inputs"
        )
    module, _, function = ENCODERS[kind].partition(":")
    own = {**recipe, **recipe.get("scaling", {})}  # a client's numbers, which of a table stand beside its columns
    return groups.shifted(getattr(importlib.import_module(module), function)(rows, own), recipe)
