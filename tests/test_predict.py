"""Predictions of new rows by exported models: the run's own scores anew, and rows that do not fit."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import fedham_flwr
from fedham_flwr import load_model, simulate
from fedham_flwr.cli import main
from fedham_flwr.core.errors import UserError
from fedham_flwr.data.clients import open_partition
from fedham_flwr.models.export import write_model
from fedham_flwr.resume.runs import read_settings
from fedham_flwr.settings import parse
from fedham_flwr.simulation import Run

SHORT: dict[str, Any] = {"num_server_rounds": 1, "verbose": False, "device": "cpu", "checkpoint_every": 0}
pytestmark = pytest.mark.usefixtures("no_pictures")
RNG = np.random.default_rng(0)
ROWS = 90


class Trained(NamedTuple):
    """A run, and the raw rows that it trained on, in their order."""

    run: Run
    rows: pd.DataFrame
    file: Path

    def of(self, client: int) -> tuple[Path, list[int]]:
        """The model of a client, and the numbers of its test rows."""
        data = open_partition(parse(read_settings(self.run.directory)).data(), client, len(self.run.clients))
        file = self.run.directory / "model" / f"{self.run.clients['client'][client]}.safetensors"
        return file, data.splits["test"].tolist()

    def scores(self, client: int) -> dict[str, float]:
        """What the run measured of the model that it exported."""
        rows, name = self.run.rows, self.run.clients["client"][client]
        phase = read_header(self.of(client)[0])["phase"]
        last = rows[(rows["round"] == rows["round"].max()) & (rows["client"] == name) & (rows["split"] == "test")]
        return dict(last[last["phase"] == phase][["metric", "value"]].itertuples(index=False, name=None))


def read_header(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


def table() -> pd.DataFrame:
    age, dose = RNG.integers(20, 90, ROWS), RNG.normal(5, 2, ROWS)
    return pd.DataFrame(
        {
            "site": np.resize(["north", "south"], ROWS),
            "age": age,
            "dose": np.where(RNG.random(ROWS) < 0.1, np.nan, dose.round(3)),
            "ill": np.where(age + 4 * dose + RNG.normal(0, 9, ROWS) > 75, "yes", "no"),
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """FedPer on a table of two sites."""
    folder, rows = tmp_path_factory.mktemp("table"), table()
    rows.to_parquet(folder / "rows.parquet")
    run = simulate(
        "fedper", dataset=folder / "rows.parquet", feature_column="age dose", label_column="ill", client_column="site",
        partitioner="natural", clients=2, results_dir=folder / "results", cache_dir=folder / "cache", **SHORT,
    )  # fmt: skip
    return Trained(run, rows, folder / "rows.parquet")


# ---- the run's own scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [0, 1])
def test_predictions_of_the_test_rows_have_the_accuracy_of_the_results(trained: Trained, client: int) -> None:
    file, test = trained.of(client)
    mine = trained.rows.iloc[test]
    found = fedham_flwr.predict(file, mine, probabilities=True, id_column="site")
    assert list(found.columns) == ["row", "site", "prediction", "probability", "p(no)", "p(yes)"]
    assert found["row"].tolist() == list(range(1, len(test) + 1))
    right = float((found["prediction"].to_numpy() == mine["ill"].to_numpy()).mean())
    assert right == trained.scores(client)["accuracy"]
    likely = found[["p(no)", "p(yes)"]].to_numpy()
    assert likely.sum(1) == pytest.approx(np.ones(len(test)))
    assert (found["probability"] == likely.max(1)).all()
    assert (found["prediction"] == np.array(["no", "yes"])[likely.argmax(1)]).all()


def test_the_command_says_the_scores_of_the_run_bit_for_bit(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, test = trained.of(1)
    trained.rows.iloc[test].to_csv(tmp_path / "mine.csv", index=False)
    name = str(trained.run.clients["name"][1])
    given = [str(trained.run.directory), str(tmp_path / "mine.csv"), "--client", name, "--score"]
    assert main(["predict", *given]) == 0
    told = capsys.readouterr()
    scores = trained.scores(1)
    assert told.err == f"accuracy {scores['accuracy']:.6g}, loss {scores['loss']:.6g} ({len(test)} predictions)\n"
    lines = told.out.splitlines()
    assert lines[0] == "row,prediction,probability"
    assert len(lines) == 1 + len(test)
    assert main(["predict", *given[:-1], "-o", str(tmp_path / "out.parquet"), "--id", "ill"]) == 0
    written = pd.read_parquet(tmp_path / "out.parquet")
    assert written["ill"].tolist() == trained.rows["ill"].iloc[test].tolist()
    assert written["prediction"].tolist() == [line.split(",")[1] for line in lines[1:]]


def test_a_run_predicts_by_the_clients_name_and_knows_the_classes(trained: Trained) -> None:
    run, file = trained.run, trained.of(0)[0]
    name = str(run.clients["name"][0])
    assert run.predict(name, trained.rows).equals(fedham_flwr.predict(file, trained.rows))
    assert run.summary["class-names"] == ["no", "yes"]
    assert run.clients["class-names"].tolist() == [["no", "yes"]] * 2
    recipe = json.loads(read_header(file)["recipe"])
    assert (recipe["outputs"], recipe["labels"], recipe["target"]) == (["no", "yes"], ["ill"], "class")
    with pytest.raises(UserError, match=r"several clients, and no client is named: wanted one of .*north"):
        fedham_flwr.predict(run.directory, trained.rows)
    with pytest.raises(UserError, match=r"several clients, and no client 'east'"):
        run.predict("east", trained.rows)


def test_rows_may_be_in_any_order_with_other_columns_and_without_labels(trained: Trained) -> None:
    file, _ = trained.of(0)
    whole = fedham_flwr.predict(file, trained.rows)
    turned = trained.rows[["dose", "age"]].iloc[::-1].assign(note="x")
    found = fedham_flwr.predict(file, turned)
    assert found["prediction"].tolist() == whole["prediction"].tolist()[::-1]
    assert found["probability"].to_numpy() == pytest.approx(whole["probability"].to_numpy()[::-1], rel=1e-6)


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_a_row_that_does_not_fit_is_named_or_left_empty(trained: Trained, tmp_path: Path) -> None:
    file, _ = trained.of(0)
    rows = trained.rows[["age", "dose"]].astype(object).head(20)
    rows.iloc[3, 0] = "many"
    rows.iloc[11, 1] = "some"
    rows.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(UserError, match="many"):
        fedham_flwr.predict(file, tmp_path / "bad.csv")
    found = fedham_flwr.predict(file, tmp_path / "bad.csv", bad_rows="leave-empty")
    assert found.index[found["prediction"].isna()].tolist() == [3, 11]
    whole = fedham_flwr.predict(file, trained.rows)["prediction"].head(20)
    assert (found["prediction"].drop([3, 11]) == whole.drop([3, 11])).all()


def test_what_is_missing_is_said(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = trained.of(0)
    for wrong, sentence in (
        (trained.rows[["age"]], "'?dose'?"),
        (tmp_path / "none.csv", "there is no file or folder"),
        (np.zeros((2, 2)), "is for rows of the kind table, and given is an array"),
    ):
        with pytest.raises(UserError, match=sentence):
            fedham_flwr.predict(file, wrong)
    with pytest.raises(UserError, match="id column 'nr': the columns are"):
        fedham_flwr.predict(file, trained.rows, id_column="nr")
    with pytest.raises(UserError, match="batch-size 0 must be above 0"):
        fedham_flwr.predict(file, trained.rows, batch_size=0)
    trained.rows[["age", "dose"]].to_csv(tmp_path / "bare.csv", index=False)
    assert main(["predict", str(file), str(tmp_path / "bare.csv"), "--score"]) == 1
    assert "the data have no column 'ill', which says what is true" in capsys.readouterr().err
    assert main(["predict", str(file), str(trained.file), "--score", "--metrics", "bogus"]) == 1
    assert "error: metrics='bogus': wanted 'auto', or some of accuracy" in capsys.readouterr().err
    assert main(["predict", str(file), str(trained.file), "-o", str(tmp_path / "no" / "x.csv")]) == 1
    assert "x.csv: there is no folder" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "gone"), str(trained.file), "--client", "0"]) == 1
    assert re.search(r"there is no file or folder .*gone: wanted a run's directory", capsys.readouterr().err)
    assert main(["predict", str(file), str(tmp_path / "bare.csv"), "-o", "x.txt"]) == 1
    assert "wanted a file that ends in .csv or .parquet" in capsys.readouterr().err


def test_a_file_of_an_earlier_version_says_that_it_cannot(trained: Trained, tmp_path: Path) -> None:
    file, _ = trained.of(0)
    written, tensors = read_header(file), load_model(file).state_dict()
    old = write_model(tmp_path, "old", tensors, {key: written[key] for key in written if key != "recipe"})
    with pytest.raises(UserError, match="does not say what turns raw rows into its inputs"):
        fedham_flwr.predict(old, trained.rows)
    assert load_model(old).training is False
    later = {**written, "recipe": json.dumps({**json.loads(written["recipe"]), "format": 2})}
    with pytest.raises(UserError, match="has a recipe of format 2, and this version of fedham-flwr knows 1"):
        fedham_flwr.predict(write_model(tmp_path, "later", tensors, later), trained.rows)


def test_a_predictor_that_is_more_than_the_network_is_said(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = trained.of(0)
    written = read_header(file) | {"predictor": "FedTPClient"}
    votes = write_model(tmp_path, "0", load_model(file).state_dict(), written)
    assert main(["predict", str(votes), str(trained.file)]) == 0
    told = capsys.readouterr().err
    assert "those of FedTPClient, which asks the client's own training samples too; the file holds the network" in told


@pytest.mark.usefixtures("workplace")
def test_the_commands_of_the_page_run(capfd: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "predict.md").read_text()
    (block,) = [block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "fedham run" in block]
    table().rename(columns={"site": "hospital"}).to_csv("patients.csv", index=False)
    run, *predict = [shlex.split(line)[1:] for line in block.splitlines()]
    assert main([*run, "-c", 'device="cpu"']) == 0
    for line in predict:
        assert main([str(next(Path().glob(word))) if "*" in word else word for word in line]) == 0
    written = pd.read_csv("predictions.csv")
    assert list(written.columns) == ["row", "prediction", "probability", "p(no)", "p(yes)"]
    assert len(written) == ROWS
    assert "accuracy 0." in capfd.readouterr().err


def test_words_dates_and_ranks_go_in_as_they_stand(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table().assign(
        sex=np.resize(["F", "M", "M"], ROWS),
        seen=(pd.Timestamp("2021-03-01") + pd.to_timedelta(np.arange(ROWS) * 5, unit="D")).strftime("%Y-%m-%d"),
        smokes=np.resize(["yes", "no", ""], ROWS),
    )
    rows.to_csv(tmp_path / "rows.csv", index=False)
    run = simulate(
        "fedavg", dataset=tmp_path / "rows.csv", feature_column="age sex seen smokes", label_column="ill",
        client_column="site", results_dir=tmp_path / "results", cache_dir=tmp_path / "cache",
        **{"table.categories": "found"}, **SHORT,
    )  # fmt: skip
    made = Trained(run, rows, tmp_path / "rows.csv")
    file, test = made.of(0)
    mine = rows.iloc[test]
    mine.to_csv(tmp_path / "mine.csv", index=False)
    assert main(["predict", str(file), str(tmp_path / "mine.csv"), "--score"]) == 0
    scores = made.scores(0)
    told = capsys.readouterr()
    assert f"accuracy {scores['accuracy']:.6g}, loss {scores['loss']:.6g} ({len(test)} predictions)" in told.err
    found = fedham_flwr.predict(file, mine)
    assert found["prediction"].tolist() == [line.split(",")[1] for line in told.out.splitlines()[1:]]
    card = json.loads(file.with_suffix(".json").read_text())
    site = run.clients["name"][0]
    days = rows.loc[rows["site"] == site, "seen"]
    assert card["data"]["period"] == {"seen": [days.min(), days.max()]}
    odd = mine.copy()
    odd.iloc[0, odd.columns.get_loc("sex")] = "X"
    odd.iloc[2, odd.columns.get_loc("seen")] = "soon"
    odd.to_csv(tmp_path / "odd.csv", index=False)
    with pytest.raises(UserError, match=r"column 'seen' holds 'soon' in odd.csv, line 4; wanted a date"):
        fedham_flwr.predict(file, tmp_path / "odd.csv")
    left = fedham_flwr.predict(file, tmp_path / "odd.csv", bad_rows="leave-empty")
    assert left.index[left["prediction"].isna()].tolist() == [2]
    said = "column 'sex' has X in 1 row, which is none of its categories: it counts as another word"
    assert caplog.messages.count(said) == 2  # of the refused prediction, and once of the other


# ---- other kinds of data ---------------------------------------------------------------------------------------------


def test_pictures_in_a_folder_have_the_accuracy_of_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = []
    for number in range(60):
        kind = ("cat", "dog")[number % 2]
        pixels = RNG.integers(0, 150, (8, 8, 3)).astype(np.uint8)
        pixels[:, :, number % 2] += 60
        file = tmp_path / "pets" / kind / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        names.append(file)
    run = simulate(
        "fedavg", dataset=tmp_path / "pets", partitioner="iid", clients=1, results_dir=tmp_path / "results",
        cache_dir=tmp_path / "cache", **SHORT,
    )  # fmt: skip
    test = Trained(run, pd.DataFrame(), tmp_path).of(0)[1]
    ordered = sorted(names, key=lambda file: (file.parent.name, file.name))
    for row in test:
        target = tmp_path / "mine" / ordered[row].parent.name / ordered[row].name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(ordered[row].read_bytes())
    (tmp_path / "mine" / "notes.txt").write_text("no picture")
    assert main(["predict", str(run.directory), str(tmp_path / "mine"), "--score"]) == 0
    told = capsys.readouterr()
    scores = Trained(run, pd.DataFrame(), tmp_path).scores(0)
    assert f"accuracy {scores['accuracy']:.6g}, loss {scores['loss']:.6g} ({len(test)} predictions)" in told.err
    assert "1 files of" in told.err
    files = [line.split(",")[0] for line in told.out.splitlines()[1:]]
    assert files == sorted(f"{ordered[row].parent.name}/{ordered[row].name}" for row in test)
    one = fedham_flwr.predict(run.directory, ordered[test[0]])
    assert one["file"].tolist() == [ordered[test[0]].name]
    assert one["prediction"][0] in ("cat", "dog")


def test_values_and_labels_are_named(trained: Trained, tmp_path: Path) -> None:
    rows = trained.rows.assign(fever=(trained.rows["age"] > 50) * 1, cough=(trained.rows["age"] < 60) * 1)
    rows.to_parquet(tmp_path / "rows.parquet")
    given: dict[str, Any] = {
        "dataset": tmp_path / "rows.parquet", "feature_column": "age dose", "partitioner": "iid", "clients": 1,
        "results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", **SHORT,
    }  # fmt: skip
    labels = simulate("fedavg", target="multi-label", label_column="fever cough", **given)
    found = labels.predict("0", rows, probabilities=True)
    assert list(found.columns) == ["row", "prediction", "p(fever)", "p(cough)"]
    said = ["; ".join(np.array(["fever", "cough"])[row]) for row in found[["p(fever)", "p(cough)"]].to_numpy() > 0.5]
    assert found["prediction"].tolist() == said
    values = simulate("fedavg", target="value", label_column="fever cough", **given)
    assert list(values.predict("0", rows)) == ["row", "prediction(fever)", "prediction(cough)"]
    one = simulate("fedavg", target="value", label_column="fever", **given)
    found = one.predict("0", rows)["prediction"].to_numpy()
    assert np.abs(found - rows["fever"].to_numpy()).mean() < 1
    assert found.dtype == np.float32


def test_texts_and_series_have_the_accuracy_of_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    news = np.resize(["the striker scores again", "shares fall on fears"], 60)
    said = [f"{text} {number}" for number, text in enumerate(news)]
    pd.DataFrame({"text": said, "topic": np.resize(["sport", "money"], 60)}).to_parquet(tmp_path / "texts.parquet")
    steps = RNG.normal(size=(60, 12, 2))
    steps[::2] += np.linspace(0, 2, 12)[:, None]
    lists = {"steps": [each.tolist() for each in steps], "move": np.resize(["walk", "sit"], 60)}
    pd.DataFrame(lists).to_parquet(tmp_path / "series.parquet")
    for name, label, model in (("texts", "topic", "fasttext"), ("series", "move", "cnn1d")):
        feature = {"texts": "text", "series": "steps"}[name]
        run = simulate(
            "fedavg", dataset=tmp_path / f"{name}.parquet", feature_column=feature, label_column=label, model=model,
            partitioner="iid", clients=1, results_dir=tmp_path / name, cache_dir=tmp_path / "cache", **SHORT,
        )  # fmt: skip
        made = Trained(run, pd.read_parquet(tmp_path / f"{name}.parquet"), tmp_path)
        made.rows.iloc[made.of(0)[1]].to_parquet(tmp_path / "mine.parquet")
        assert main(["predict", str(run.directory), str(tmp_path / "mine.parquet"), "--score"]) == 0
        scores, told = made.scores(0), capsys.readouterr().err
        assert f"accuracy {scores['accuracy']:.6g}, loss {scores['loss']:.6g} ({len(made.of(0)[1])} pred" in told


def test_windows_of_recordings_have_a_prediction_each_at_their_last_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pd.DataFrame({"x": RNG.normal(size=120), "who": np.repeat(["a", "b"], 60), "on": np.resize([0, 1], 120)})
    rows.to_parquet(tmp_path / "rows.parquet")
    run = simulate(
        "fedavg", dataset=tmp_path / "rows.parquet", feature_column="x", label_column="on", partitioner="iid",
        clients=1, results_dir=tmp_path / "results", cache_dir=tmp_path / "cache",
        series={"length": 10, "recording": "who", "label": "majority"}, **SHORT,
    )  # fmt: skip
    found = run.predict("0", rows, id_column="who")
    assert found["row"].tolist() == list(range(10, 121, 10))
    assert found["who"].tolist() == ["a"] * 6 + ["b"] * 6
    one = run.predict("0", rows.iloc[30:40])
    assert one["probability"].tolist() == pytest.approx([found["probability"][3]], rel=1e-6)
    assert main(["predict", str(run.directory), str(tmp_path / "rows.parquet"), "--score"]) == 1
    told = capsys.readouterr().err
    assert re.search(r'error: series.label of the model is "majority".* wanted a model of series.label="last"', told)


def test_the_data_of_a_function_are_predicted_as_it_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = RNG.normal(size=(40, 3)).astype(np.float32)

    def load() -> Any:
        return inputs, ["up" if row[0] > 0 else "down" for row in inputs]

    def net(shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
        return torch.nn.Linear(shape[0], outputs)

    monkeypatch.chdir(tmp_path)
    run = simulate("fedavg", dataset=load, model=net, clients=1, results_dir=tmp_path / "results", **SHORT)
    found = run.predict("0", inputs)
    assert found["prediction"].isin(["up", "down"]).all()
    wanted = run.models["0"](torch.from_numpy(inputs)).argmax(1).tolist()
    assert found["prediction"].tolist() == [["down", "up"][place] for place in wanted]
    np.save(tmp_path / "x.npy", inputs)
    file = run.directory / "model" / "0.safetensors"
    assert fedham_flwr.predict(file, tmp_path / "x.npy", trust_imports=True).equals(found)
    with pytest.raises(UserError, match="trust_imports=True, if it is yours"):
        fedham_flwr.predict(file, inputs)
    with pytest.raises(UserError, match=r"make samples of shape \(2,\), and the model of .* is for \(3,\)"):
        run.predict("0", inputs[:, :2])
    with pytest.raises(UserError, match=r"loaded by a function of a user's own"):
        run.predict("0", pd.DataFrame(inputs))


def test_new_rows_are_read_with_the_decimal_sign_of_the_run(tmp_path: Path) -> None:
    rows = [f'"{place},{place * 7 % 10}",{place % 5},{place % 2}' for place in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["x,y,label", *rows, ""]))
    run = simulate(
        "local", clients=2, dataset=tmp_path / "rows.csv", feature_column="x y", partitioner="iid", num_server_rounds=1,
        results_dir=tmp_path / "results", cache_dir=tmp_path / "cache", verbose=False, **{"table.decimal": ","},
    )  # fmt: skip
    numbers = pd.DataFrame({"x": [place + place * 7 % 10 / 10 for place in range(60)], "y": np.arange(60) % 5})
    read, given = (run.predict("0", data)["probability"] for data in (tmp_path / "rows.csv", numbers))
    assert read.tolist() == given.tolist()
