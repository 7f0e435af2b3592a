"""Models as ONNX and as programs of torch: every network says the same there, from raw inputs on."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fedham_flwr import simulate
from fedham_flwr.cli import main
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.files import digest
from fedham_flwr.core.shapes import of_series, of_tokens
from fedham_flwr.models import NetworkSettings, build
from fedham_flwr.models.char_transformer import CharTransformerSettings
from fedham_flwr.models.export import label, write_model
from fedham_flwr.models.grafts import GraftSettings
from fedham_flwr.models.heads import HeadSettings
from fedham_flwr.models.vit import ViTSettings
from fedham_flwr.predicting import formats, portable, raw_rows
from fedham_flwr.predicting.exported import Exported

SMALL = {"width": 16, "depth": 1, "heads": 2, "head_dim": 4, "hidden_dim": 8}
CBAM = NetworkSettings(graft=GraftSettings(kind="cbam"))
TWO_HEADS = NetworkSettings.of(vit=ViTSettings(**SMALL), head=HeadSettings("second", "fedtp.head"))
CHARS = NetworkSettings.of(char_transformer=CharTransformerSettings(**SMALL))
IMAGE, SCALING = {"kind": "image", "features": "image"}, {"mean": [2.0, 50.0, -1.0], "std": [3.0, 20.0, 0.5]}
TABLE = {
    "kind": "table",
    "features": "table",
    "columns": [{"name": "dose", "names": []}, {"name": "age", "names": []}, {"name": "sex", "names": ["f", "m"]}],
    "scaling": {"mean": [2.0, 50.0, 0.4, 0.6], "std": [3.0, 20.0, 0.5, 0.5]},
}
RICH = {
    "kind": "table",
    "features": "table",
    "columns": [
        {"name": "dose", "names": []},
        {"name": "smokes", "names": [], "kind": "boolean"},
        {"name": "ward", "names": ["a", "b"], "kind": "category"},
        {"name": "stage", "names": ["I", "II", "III"], "kind": "ordered"},
        {"name": "seen", "names": [], "kind": "date", "parts": ["month", "weekday", "hour"]},
        {"name": "pulse", "names": [], "kind": "list", "size": 2},
    ],
    "scaling": {
        "mean": [2.0, 0.4, 0.3, 0.3, 0.1, 0.5, 0.1, 8000.0, 0, 0, 0, 0, 0, 0, 70, 80],
        "std": [3.0, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3, 500.0, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 9, 9],
    },
}
SERIES = {"kind": "series", "features": "series", "scaling": SCALING, "columns": ["x", "y", "z"]}
TOKENS = {"kind": "text", "features": "tokens"}
NETWORKS: dict[str, tuple[str, tuple[int, ...], NetworkSettings, dict[str, Any]]] = {
    "digits-cnn": ("digits-cnn", (1, 8, 8), NetworkSettings(), IMAGE),
    "cnn": ("cnn", (3, 16, 16), NetworkSettings(), IMAGE),
    "lenet": ("lenet", (1, 16, 16), NetworkSettings(), IMAGE),
    "lenet-bn": ("lenet-bn", (1, 16, 16), NetworkSettings(), IMAGE),
    "transfer-cnn-cbam": ("transfer-cnn", (1, 16, 16), CBAM, IMAGE),
    "vit": ("vit", (3, 8, 8), TWO_HEADS, IMAGE),
    "char-transformer": ("char-transformer", (9,), CHARS, {"kind": "text", "features": "text"}),
    "resnet18": ("torchvision:resnet18", (1, 8, 8), NetworkSettings(), IMAGE),
    "mlp": ("mlp", (2, 16), NetworkSettings(), RICH),
    "cnn1d": ("cnn1d", of_series(3, 12), NetworkSettings(), SERIES),
    "gru": ("gru", of_series(3, 12), NetworkSettings(), SERIES),
    "series-transformer": ("series-transformer", of_series(3, 16), NetworkSettings(), SERIES),
    "fasttext": ("fasttext", of_tokens(7, 30), NetworkSettings(), TOKENS),
    "text-transformer": ("text-transformer", of_tokens(7, 30), NetworkSettings(), TOKENS),
}
NEEDS_ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in formats.NEEDED), reason="the extra onnx is not installed"
)


def exported(
    folder: Path, name: str, shape: tuple[int, ...], settings: NetworkSettings, recipe: dict[str, Any], **more: Any
) -> Exported:
    """A model with random parameters and running statistics, as a run would leave it."""
    network = build(name, shape, 3, 1, settings)
    draw = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for key, tensor in state.items():
        if key.endswith(("running_mean", "running_var")):
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
        elif tensor.is_floating_point():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=draw))
    told = {"format": 1, "target": "class", "outputs": ["no", "maybe", "yes"], "labels": [], **recipe, **more}
    header = {**label(name, shape, 3, settings), "client": "0", "phase": "after", "recipe": json.dumps(told)}
    return Exported.open(write_model(folder, "0", state, header))


def onnx_run(path: Path, inputs: np.ndarray[Any, Any]) -> list[Any]:
    import onnxruntime

    return list(onnxruntime.InferenceSession(path).run(None, {"input": inputs}))


@pytest.mark.slow  # an exporter takes seconds for each
@NEEDS_ONNX
def test_a_table_goes_in_raw_and_its_probabilities_come_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    model = exported(tmp_path, "mlp", (2, 4), NetworkSettings(), TABLE)
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(model.path), "--format", "onnx"]) == 0
    assert "0.onnx: it says what" in capsys.readouterr().err
    raw = np.array([[1.5, 33, 0], [np.nan, 71, 1], [-9, np.nan, np.nan], [1e6, 50, 1]])
    logits, likely = onnx_run(tmp_path / "0.onnx", raw)
    # By hand: standardised, no further than 10 from 0, a place for each sex, and flags of what is missing.
    sexes = np.array([[1, 0], [0, 1], [np.nan, np.nan], [0, 1]])
    mean, std = (np.array(TABLE["scaling"][name]) for name in ("mean", "std"))
    scaled = np.clip((np.concatenate([raw[:, :2], sexes], 1) - mean) / std, -10, 10)
    inputs = np.stack([np.nan_to_num(scaled), np.isnan(scaled)], 1).astype(np.float32)
    with torch.no_grad():
        wanted = model.network(torch.from_numpy(inputs))
    assert np.abs(logits - wanted.numpy()).max() < 1e-5
    assert np.abs(likely - wanted.softmax(-1).numpy()).max() < 1e-5
    about = onnxruntime.InferenceSession(tmp_path / "0.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(about["outputs"]) == ["no", "maybe", "yes"]
    assert json.loads(about["columns"]) == ["dose", "age", "sex"]
    assert json.loads(about["categories"]) == {"sex": ["f", "m"]}
    assert json.loads(about["recipe"])["scaling"] == TABLE["scaling"]
    assert about["digest"] == digest(model.path)


@pytest.mark.slow
@NEEDS_ONNX
@pytest.mark.parametrize("case", NETWORKS)
def test_every_network_says_the_same_as_onnx(tmp_path: Path, case: str) -> None:
    model = exported(tmp_path, *NETWORKS[case])
    formats.write(model, "onnx", tmp_path / "m.onnx")
    module = portable.Portable(model)
    for size in (1, 2, 7, 300):
        inputs = portable.samples(model, size)
        with torch.no_grad():
            wanted = module(inputs)
        for ours, theirs in zip(wanted, onnx_run(tmp_path / "m.onnx", inputs.numpy()), strict=True):
            assert np.abs(theirs - ours.numpy()).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lenet-bn", "gru", "text-transformer"])
def test_a_program_of_torch_says_the_same(tmp_path: Path, case: str) -> None:
    model = exported(tmp_path, *NETWORKS[case])
    assert main(["export", str(model.path), "--format", "torch", "-o", str(tmp_path / "m.pt2")]) == 0
    told = {"outputs": "", "recipe": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=told).module()
    assert json.loads(told["outputs"]) == ["no", "maybe", "yes"]
    for size in (1, 2, 300):
        inputs = portable.samples(model, size)
        with torch.no_grad():
            pairs = zip(program(inputs), portable.Portable(model)(inputs), strict=True)
            assert all(torch.allclose(*pair, rtol=0, atol=1e-5) for pair in pairs)


@pytest.mark.slow
@NEEDS_ONNX
@pytest.mark.usefixtures("workplace")
def test_the_ten_lines_of_the_page_say_what_predict_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "predict.md").read_text()
    (block,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    (make,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(make, names)
    assert (
        main(["export", str(names["run"].directory), "--client", "north", "--format", "onnx", "-o", "north.onnx"]) == 0
    )
    capsys.readouterr()
    exec(block, names)
    wanted = names["run"].predict("north", pd.DataFrame({"age": [70, 33], "dose": [4.1, None]}))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == wanted["prediction"].tolist()
    assert [float(line[1]) for line in lines] == pytest.approx(wanted["probability"].tolist(), abs=1e-5)
    assert len(block.split("import onnxruntime")[1].strip().splitlines()) <= 10


@pytest.mark.slow
@NEEDS_ONNX
@pytest.mark.usefixtures("workplace")
def test_words_and_dates_say_as_onnx_what_predict_says() -> None:
    count, draw = 80, np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "age": draw.integers(20, 90, count),
            "sex": np.resize(["F", "M", "M", ""], count),
            "smokes": np.resize(["yes", "no", ""], count),
            "seen": pd.Timestamp("2021-03-01T07:30") + pd.to_timedelta(np.arange(count) * 317, unit="h"),
            "ill": np.resize(["no", "yes"], count),
        }
    )
    rows.to_csv("rows.csv", index=False)
    run = simulate(
        "fedavg", dataset="rows.csv", feature_column="age sex smokes seen", label_column="ill", partitioner="iid",
        clients=1, num_server_rounds=1, verbose=False, device="cpu", **{"table.categories": "found"},
    )  # fmt: skip
    assert main(["export", str(run.directory), "--format", "onnx", "-o", "m.onnx"]) == 0
    raw = np.stack(
        [
            rows["age"].to_numpy(float),
            rows["sex"].map({"F": 0, "M": 1}).to_numpy(float),
            rows["smokes"].map({"yes": 1, "no": 0}).to_numpy(float),
            ((rows["seen"] - pd.Timestamp("2000-01-01")) / pd.Timedelta(days=1)).to_numpy(float),
        ],
        axis=1,
    )
    wanted = run.predict("0", "rows.csv", probabilities=True)[["p(no)", "p(yes)"]].to_numpy()
    assert np.abs(onnx_run(Path("m.onnx"), raw)[1] - wanted).max() < 1e-5


def test_raw_inputs_are_what_a_run_feeds_its_network(tmp_path: Path) -> None:
    """Of images and series, against the features as they are stored."""
    model = exported(tmp_path, *NETWORKS["lenet-bn"])
    pixels = portable.samples(model, 6)
    with torch.no_grad():
        logits, likely = portable.Portable(model)(pixels)
    assert torch.equal(logits, model.outputs(pixels.numpy(), "cpu"))
    assert torch.equal(likely, logits.softmax(-1))
    model = exported(tmp_path, *NETWORKS["cnn1d"])
    steps = portable.samples(model, 6)
    assert steps.isnan().any()
    stored = ((steps.double() - torch.tensor(SCALING["mean"])) / torch.tensor(SCALING["std"])).clamp(-10, 10).float()
    with torch.no_grad():
        assert torch.equal(portable.Portable(model)(steps)[0], model.outputs(stored.numpy(), "cpu"))


def test_the_parts_of_a_date_are_those_of_the_calendar() -> None:
    start = np.datetime64("1899-12-30T05:00")
    moments = start + np.arange(0, 26_000_000, 40_001).astype("timedelta64[m]") * 3
    days = (moments - np.datetime64("2000-01-01")) / np.timedelta64(1, "D")
    recipe = {"columns": [{"name": "at", "names": [], "kind": "date", "parts": ["month", "weekday", "hour"]}]}
    scaling = {"mean": [0.0] * 7, "std": [1e5] + [1.0] * 6}
    found = raw_rows.Scaled(recipe | {"scaling": scaling})(torch.from_numpy(days)[:, None])[:, 0].double().numpy()
    calendar = pd.DatetimeIndex(moments)
    turns = (calendar.month - 1) / 12, calendar.day_of_week / 7, (calendar.hour + calendar.minute / 60) / 24
    wanted = np.stack([wave(2 * np.pi * np.asarray(turn)) for turn in turns for wave in (np.sin, np.cos)], 1)
    assert np.abs(found[:, 1:] - wanted).max() < 1e-6
    assert found[:, 0] == pytest.approx(days / 1e5, rel=1e-6)


def test_what_says_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = exported(tmp_path, "mlp", (2, 4), NetworkSettings(), TABLE)

    def off(module: Any, tried: Any, about: Any) -> Any:
        return b"", lambda x: [each.detach().numpy() + 2e-5 for each in module(x)]

    monkeypatch.setattr(formats, "_onnx", off)
    with pytest.raises(UserError, match=r"as onnx says other logits, off by 2\.0e-05 where 1e-05 is allowed"):
        formats.write(model, "onnx", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_what_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = exported(tmp_path, "mlp", (2, 4), NetworkSettings(), TABLE)
    given = ["export", str(model.path), "--format", "onnx", "-o"]
    assert main([*given, str(tmp_path / "m.pt2")]) == 1
    assert "wanted a file that ends in .onnx" in capsys.readouterr().err
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None if name != "onnx" else object())
    assert main([*given, str(tmp_path / "m.onnx")]) == 1
    assert "--format onnx needs onnxscript, onnxruntime: pip install 'fedham-flwr[onnx]'" in capsys.readouterr().err


@pytest.mark.slow
@NEEDS_ONNX
def test_an_onnx_file_runs_where_there_is_no_torch(tmp_path: Path) -> None:
    model = exported(tmp_path, *NETWORKS["lenet-bn"])
    formats.write(model, "onnx", tmp_path / "m.onnx")
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    made = subprocess.run(
        [python, "-m", "pip", "install", "-q", "onnxruntime", "numpy"], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"pip cannot install onnxruntime here: {made.stderr.splitlines()[-1:]}")
    inputs = portable.samples(model, 4)
    np.save(tmp_path / "x.npy", inputs.numpy())
    program = (
        "import importlib.util, json, numpy, onnxruntime\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "session = onnxruntime.InferenceSession('m.onnx')\n"
        "logits, likely = session.run(None, {'input': numpy.load('x.npy')})\n"
        "names = json.loads(session.get_modelmeta().custom_metadata_map['outputs'])\n"
        "print(json.dumps([likely.tolist(), [names[place] for place in likely.argmax(1)]]))\n"
    )
    ran = subprocess.run([python, "-c", program], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    likely, said = json.loads(ran.stdout)
    with torch.no_grad():
        wanted = portable.Portable(model)(inputs)[1]
    assert np.abs(np.array(likely) - wanted.numpy()).max() < 1e-5
    assert said == [["no", "maybe", "yes"][place] for place in wanted.argmax(1).tolist()]
    assert sys.version_info >= (3, 11)
