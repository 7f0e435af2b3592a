"""The command line: what a user's mistake looks like, and that nothing else is printed or done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedham_flwr.cli import overrides
from fedham_flwr.cli import run_command as main


def errors(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The text on stderr of a command that must fail; it is one line, and no run has begun."""
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_all_wrong_keys_and_values_are_reported_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = errors(capsys, "-c", "learnin-rate=0.1 momentum=2.0", "--results-dir", str(tmp_path / "r"))
    assert text.startswith("error: settings: ")
    assert "there is no key learnin-rate (given 0.1): did you mean learning-rate?" in text
    assert "momentum=2.0: wanted" in text or "momentum=2.0:" in text
    assert not (tmp_path / "r").exists()


def test_an_unknown_strategy_is_answered_with_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = errors(capsys, "-c", 'strategy="fedavgg"')
    methods = (
        "'local', 'fedavg', 'fedprox', 'fedper', 'pfedla', 'amn', 'fedham', 'fedtp', 'fedtransfer', 'fedrep', 'ditto', "
        "'fedala' or an import path 'package.module:Object'"
    )
    assert f"strategy='fedavgg': wanted {methods}" in text


def test_text_that_flower_would_pass_over_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'alpha = 0.5' is not of the form key=value" in errors(capsys, "-c", "seed=1 alpha = 0.5")


def test_a_value_without_quotes_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert "strategy=fedavg" in errors(capsys, "-c", "strategy=fedavg")


def test_a_missing_config_file_is_named_with_its_whole_path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert f"there is no such file ({tmp_path / 'a.toml'})" in errors(capsys, "-c", str(tmp_path / "a.toml"))


def test_no_clients_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--num-supernodes 0" in errors(capsys, "--num-supernodes", "0")


def test_the_option_resume_is_the_setting_of_that_name_and_comes_before_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = errors(capsys, "-c", 'resume="c" strategy="fedavg"', "--resume", "a/b", "--backend", "in-process")
    assert text.startswith("error: resume=a/b is not the directory of a run: wanted results/<strategy>/<time>-<seed>")


def test_overrides_come_from_text_and_from_files(tmp_path: Path) -> None:
    assert overrides(["seed=3 fedprox.mu=0.5", 'strategy="local"']) == {
        "seed": 3,
        "fedprox.mu": 0.5,
        "strategy": "local",
    }
    (tmp_path / "a.toml").write_text("seed = 4\n[fedprox]\nmu = 0.25\n")
    assert overrides([str(tmp_path / "a.toml")]) == {"seed": 4, "fedprox.mu": 0.25}


def test_a_run_prints_where_its_results_are_last_and_can_be_repeated_from_its_config(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, cache_dir: Path
) -> None:
    given = f'num-server-rounds=1 batch-size=64 strategy="fedavg" cache-dir="{cache_dir}"'
    options = ["--backend", "in-process", "--num-supernodes", "3", "--results-dir", str(tmp_path)]

    def run(config: str) -> Path:
        assert main([*options, "-c", config]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("results: /")
        return Path(last.removeprefix("results: "))

    first = run(given)
    second = run(str(first / "config.toml"))
    assert first != second
    assert digest(first) == digest(second)


def digest(path: Path) -> str:
    return str(json.loads((path / "summary.json").read_text())["digest"])


def test_a_failing_run_ends_with_code_1_and_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--backend", "in-process", "--results-dir", str(tmp_path), "-c", 'dataset="./nowhere"']
    assert main(options) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(Path("nowhere").absolute()) in error
