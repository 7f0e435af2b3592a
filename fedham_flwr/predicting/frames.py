"""Outputs of a network as a table: a prediction in a row.

Letters: n rows, m of them that fit, K classes, k labels or values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fedham_flwr.core.errors import UserError

if TYPE_CHECKING:
    import pandas

PREDICTION, PROBABILITY = "prediction", "probability"
"""Columns of the table."""


def frame_of(
    outputs: Tensor, recipe: Mapping[str, Any], first: Mapping[str, Sequence[Any]], good: Sequence[int], all_of: bool
) -> pandas.DataFrame:
    """Predictions, a row each.

    Args:
        outputs: float32 [m, K] logits, [m, k] logits of labels, or [m, k] values.
        recipe: says what was learned, and the names of the outputs.
        first: columns that say which row is which, [n].
        good: the numbers of the rows that fit, [m]; the others are empty.
        all_of: whether there is a column for the probability of each class or label.

    Raises:
        UserError: two columns have one name.
    """
    import pandas as pd

    made = _columns(outputs, recipe, all_of)
    if twice := [name for name in made if name in first]:
        raise UserError(f"id column {twice[0]!r}: the predictions have a column of this name")
    rows = len(next(iter(first.values())))
    index = np.asarray(good, dtype=np.int64)
    told = pd.DataFrame(made, index=index).reindex(range(rows))
    return pd.concat([pd.DataFrame({name: list(values) for name, values in first.items()}), told], axis=1)


def _columns(outputs: Tensor, recipe: Mapping[str, Any], all_of: bool) -> dict[str, Any]:
    names: list[str] = list(recipe["outputs"])
    if recipe["target"] == "value":
        values = outputs.reshape(len(outputs), -1)
        if values.shape[1] == 1:
            return {PREDICTION: values[:, 0].numpy()}
        return {
            f"{PREDICTION}({name})": values[:, place].numpy() for place, name in enumerate(_numbered(names, values))
        }
    names = _numbered(names, outputs)
    if recipe["target"] == "multi-label":
        likely = outputs.double().sigmoid().numpy()
        said = ["; ".join(name for name, on in zip(names, row, strict=True) if on) for row in (outputs > 0).numpy()]
        made: dict[str, Any] = {PREDICTION: said}
    else:
        likely = outputs.double().softmax(-1).numpy()
        best = outputs.argmax(-1).numpy()
        made = {PREDICTION: [names[place] for place in best], PROBABILITY: likely[np.arange(len(best)), best]}
    if all_of:
        made |= {f"p({name})": likely[:, place] for place, name in enumerate(names)}
    return made


def _numbered(names: Sequence[str], outputs: Tensor) -> list[str]:
    """As many names as there are outputs."""
    return [*names, *map(str, range(len(names), outputs.shape[1]))][: outputs.shape[1]]
