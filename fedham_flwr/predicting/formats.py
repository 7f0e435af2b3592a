"""Models in the formats of other programs: ONNX, and a program of torch.export; tried before they are written."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedham_flwr import __version__
from fedham_flwr.core.errors import UserError, first_line
from fedham_flwr.core.files import digest, replacing
from fedham_flwr.predicting import raw_rows
from fedham_flwr.predicting.exported import Exported
from fedham_flwr.predicting.portable import Portable, samples

CLOSE = 1e-5
"""How far an output may be from the original's, where this is below 1; beyond, as a share of it."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")
"""Packages of the extra `onnx`."""
INPUT = "input"
BATCHES = (1, 2, 5)
"""Sizes of the batches that a model is tried with."""
Run = Callable[[Tensor], list[np.ndarray[Any, Any]]]
"""What an exported model says of inputs."""


def write(model: Exported, form: str, path: Path) -> dict[str, str]:
    """Write a model in another format.

    Args:
        model: an exported one.
        form: onnx or torch.
        path: of the file.

    Returns:
        What the file says of itself.

    Raises:
        UserError: the network cannot be written so, says something else then, or the file cannot be written.
    """
    module, tried = Portable(model), samples(model)
    about = metadata(model, module)
    with torch.no_grad():
        module(tried)  # what a network works out once and keeps is then there as numbers
    raw, run = (_onnx if form == "onnx" else _torch)(module, tried, about)
    check(model, module, run, form)
    try:
        with replacing(path) as part:
            part.write_bytes(raw)
    except OSError as error:
        raise UserError(f"the model cannot be written to {path}: {error.strerror or error}") from error
    return about


def metadata(model: Exported, module: Portable) -> dict[str, str]:
    """What a file says of itself: whose model it is, what goes in and what comes out.

    Args:
        model: an exported one.
        module: the same from raw inputs on.
    """
    recipe = model.recipe
    of_header = {key: model.header[key] for key in ("client", "strategy", "phase", "round") if key in model.header}
    table = recipe["kind"] == "table"
    columns = raw_rows.names(recipe) if table else recipe.get("channels", ())
    categories = {each["name"]: each["names"] for each in recipe["columns"] if each["names"]} if table else {}
    return {
        **of_header,
        "outputs": json.dumps(recipe["outputs"], ensure_ascii=False),
        **({"columns": json.dumps(columns, ensure_ascii=False)} if columns else {}),
        **({"categories": json.dumps(categories, ensure_ascii=False)} if categories else {}),
        "recipe": json.dumps(recipe, ensure_ascii=False),
        "names": json.dumps(module.names),
        "digest": digest(model.path),
        "version": __version__,
        **({"caution": model.caution} if model.caution else {}),
    }


def check(model: Exported, module: Portable, run: Run, form: str) -> None:
    """Compare outputs with those of the original, on batches of several sizes.

    Args:
        model: an exported one.
        module: the same from raw inputs on.
        run: what the format's file says.
        form: for the sentence.

    Raises:
        UserError: an output differs by more than `CLOSE`.
    """
    for size in BATCHES:
        tried = samples(model, size)
        with torch.no_grad():
            wanted = [each.numpy() for each in module(tried)]
        for name, ours, theirs in zip(module.names, wanted, run(tried), strict=True):
            same = ours.shape == theirs.shape
            far = float(np.max(np.abs(ours - theirs) / np.maximum(1, np.abs(ours)))) if same else np.inf
            if not far <= CLOSE:
                raise UserError(
                    f"{model.path} as {form} says other {name}, off by {far:.1e} where {CLOSE:.0e} is allowed: nothing "
                    "is written"
                )


def _exported(module: Portable, tried: Tensor) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch")}
    try:
        with _quiet():
            return torch.export.export(module, (tried,), dynamic_shapes=(batch,))
    except Exception as error:  # whatever torch raises for a network that it cannot trace
        raise UserError(f"this network cannot be written in another format: {first_line(error)}") from error


def _torch(module: Portable, tried: Tensor, about: Mapping[str, str]) -> tuple[bytes, Run]:
    file = io.BytesIO()
    torch.export.save(_exported(module, tried), file, extra_files=dict(about))
    raw = file.getvalue()
    program = torch.export.load(io.BytesIO(raw)).module()

    def run(x: Tensor) -> list[np.ndarray[Any, Any]]:
        with torch.no_grad():
            return [each.numpy() for each in program(x)]

    return raw, run


def _onnx(module: Portable, tried: Tensor, about: Mapping[str, str]) -> tuple[bytes, Run]:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format onnx needs {', '.join(missing)}: pip install 'fedham-flwr[onnx]'")
    import onnxruntime

    program = _exported(module, tried)
    try:
        with _quiet():
            made = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=list(module.names)
            )
            assert made is not None
            proto = made.model_proto
    except Exception as error:  # whatever the exporter raises for an operation that ONNX has not
        raise UserError(f"this network cannot be written as ONNX: {first_line(error)}") from error
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for key, text in about.items():
        proto.metadata_props.add(key=key, value=text)
    raw: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    return raw, lambda x: [np.asarray(each) for each in session.run(None, {INPUT: x.numpy()})]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters say of their own progress from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
