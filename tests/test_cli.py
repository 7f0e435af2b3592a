"""The command line: what a user's mistake looks like, and that nothing else is printed or done."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import run_simulation
from fedham_flwr import registry
from fedham_flwr.cli import main as fedham
from fedham_flwr.cli import overrides
from fedham_flwr.cli import run_command as main
from fedham_flwr.commands import settings
from fedham_flwr.settings import defaults


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
    named = ", ".join(f"'{name}'" for name in registry.BUILT_IN)
    assert f"strategy='fedavgg': wanted {named} or an import path 'package.module:Object'" in text


def test_text_that_flower_would_pass_over_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'alpha = 0.5' is not of the form key=value" in errors(capsys, "-c", "seed=1 alpha = 0.5")


def test_a_value_without_quotes_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    given = "seed=-1 learning-rate=1e-3 augment=true a='b' strategy=fedavg"
    assert 'strategy=fedavg: a text needs quotes, strategy="fedavg"' in errors(capsys, "-c", given)


def test_a_reader_of_the_settings_may_close_the_pipe() -> None:
    line = f"{sys.executable} -c 'from fedham_flwr.cli import main; main()' settings | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("strategy = ")
    assert done.stderr == ""


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


@pytest.mark.parametrize(
    ("given", "twice"),
    [
        (["seed=1 alpha=0.5 seed=2"], "seed is given twice, as 1 and as 2"),
        (["alpha=0.5 seed=1 seed=1"], "seed is given twice, as 1 and as 1"),
        (
            ["seed=2", 'strategy="fedprox" fedprox.mu=1.0 fedprox.mu=0.1'],
            "fedprox.mu is given twice, as 1.0 and as 0.1",
        ),
        (["dataset='a b seed=1' seed=2 dataset=\"c\""], "dataset is given twice, as 'a b seed=1' and as \"c\""),
    ],
)
def test_a_setting_that_is_given_twice_is_refused(
    capsys: pytest.CaptureFixture[str], given: list[str], twice: str
) -> None:
    options = [option for text in given for option in ("-c", text)]
    assert errors(capsys, *options) == f"error: -c {given[-1]!r}: {twice}: wanted it once\n"


# ---- the command fedham ----------------------------------------------------------------------------------------------


def test_the_later_of_several_options_wins_and_sections_are_joined(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('strategy = "fedper"\nseed = 4\n[fedtp]\nrank = 2\n')
    assert overrides([str(tmp_path / "base.toml"), 'strategy="local" fedtp.head="fedper"']) == {
        "strategy": "local", "seed": 4, "fedtp.rank": 2, "fedtp.head": "fedper",
    }  # fmt: skip
    (tmp_path / "more.toml").write_text("seed = 5\n[fedtp]\nrank = 4\n")
    files = [str(tmp_path / name) for name in ("base.toml", "more.toml")]
    assert overrides(files) == {"strategy": "fedper", "seed": 5, "fedtp.rank": 4}
    assert overrides(["seed=1 alpha=0.5", "seed=2"]) == {"seed": 2, "alpha": 0.5}
    assert overrides(["seed=1", files[0]]) == {"strategy": "fedper", "seed": 4, "fedtp.rank": 2}


def test_fedham_alone_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        assert fedham(arguments) == 0
        assert "fedham run" in capsys.readouterr().out
    assert fedham(["rnu"]) == 2
    assert capsys.readouterr().err.startswith("error: 'rnu' is no command\nusage: fedham COMMAND")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert fedham(["--version"]) == 0
    assert capsys.readouterr().out == f"fedham-flwr {tomllib.loads(text)['project']['version']}\n"
    assert fedham(["--help"]) == 0
    assert "fedham --version" in capsys.readouterr().out


def test_fedham_settings_says_of_each_setting_its_default_and_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedham(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" = ")[0] for line in lines] == list(defaults())
    assert tomllib.loads("\n".join(lines))["alpha"] == 0.1  # can be copied
    assert [line for line in lines if line.startswith("alpha")] == [
        "alpha = 0.1                       # dirichlet: concentration, > 0; small is skewed"
    ]
    for arguments in (["settings", "fedper"], ["settings", "--section", "fedper"]):
        assert fedham(arguments) == 0
        assert capsys.readouterr().out.startswith("fedper.personal-layers = 1  ")
    for setting in ("alpha", "fedper.personal-layers"):
        assert fedham(["settings", setting]) == 0
        assert capsys.readouterr().out.startswith(f"{setting} = ")
    assert fedham(["settings", "fedpre"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no section and no setting fedpre: wanted one of ")
    with pytest.raises(SystemExit, match="2"):
        fedham(["settings", "--sections"])
    assert "unrecognized arguments: --sections" in capsys.readouterr().err


def test_without_pyproject_settings_have_no_remarks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings, "__file__", str(tmp_path / "a" / "b" / "settings.py"))
    assert fedham(["settings", "fedper"]) == 0
    assert capsys.readouterr().out == "fedper.personal-layers = 1\n"


def test_fedham_run_is_the_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedham(["run", "--num-supernodes", "0"]) == 1
    assert "--num-supernodes 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        fedham(["run", "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: fedham run ")


def test_an_interrupt_while_modules_are_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before, codes = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(run_simulation.os, "_exit", codes.append)
    monkeypatch.setattr(run_simulation.sys, "argv", ["fedham"])
    try:
        run_simulation.end_at_once()
        signal.raise_signal(signal.SIGINT)
        assert codes == [130]
        assert run_simulation.fedham() == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # all is done
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "interrupted\n"


ENDING = """
    import atexit, os, sys
    import run_simulation
    atexit.register(print, "what has to end has ended")
    class Thread:
        def __del__(self, leave=os._exit):
            leave(11)
    run_simulation.THREAD = Thread()  # lives until the interpreter takes its modules away
    sys.exit(run_simulation._ended(int(sys.argv[1])))
"""


@pytest.mark.parametrize(("code", "ended"), [(0, 11), (130, 130)])
def test_after_an_interrupt_the_interpreter_is_not_taken_apart(code: int, ended: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ENDING), str(code)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (ended, "what has to end has ended\n", "")
