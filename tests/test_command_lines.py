"""What is typed wrong on a command line is one sentence, at once, that names it and what was wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedham_flwr.cli import main
from fedham_flwr.core.errors import UserError
from fedham_flwr.data.sources import local_path


def test_a_name_with_the_ending_of_a_file_or_in_a_folder_is_a_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("stays.tsv", "Stays.XLSX", "stays.csv.gz", "data/stays", "data/stays.txt", "stays/", "no/stays.zip"):
        with pytest.raises(UserError, match=rf"dataset is '{name}', but there is no file or folder"):
            local_path(name)
    names = ("mnist", "ylecun/mnist", "allenai/c4.en", "wikitext-2-raw-v1", "user/data-v1.0", "google/fleurs.v2")
    assert not any(map(local_path, names))


TYPED: list[tuple[list[str], str]] = [
    (["-c", "augment=True"], "-c 'augment=True': augment=True: a truth value is true or false, in small letters"),
    (["-c", "augment=yes"], "-c 'augment=yes': augment=yes: a truth value is true or false, in small letters"),
    (["-c", 'strategy="fedavg'], "-c 'strategy=\"fedavg': strategy=\"fedavg: the quote is not closed"),
    (["-c", "dataset='a b"], "-c \"dataset='a b\": dataset='a: the quote is not closed"),
    (["-c", "strategy={}"], "-c 'strategy={}': strategy={}: wanted a number, a truth value or a text in quotes"),
    (["-c", "momentum=[0.9]"], "-c 'momentum=[0.9]': momentum=[0.9]: wanted a number, a truth value or a text in"),
    (["-c", "strategy=local"], '-c \'strategy=local\': strategy=local: a text needs quotes, strategy="local"'),
    (["-c", "seed==3"], '-c \'seed==3\': seed==3: a text needs quotes, seed="=3"'),
    (["-c", "=3"], "-c '=3': '=3' is not of the form key=value (no blanks around =)"),
    (["-c", "ward.txt"], "-c 'ward.txt': 'ward.txt' is not of the form key=value (no blanks around =); the name of a"),
    (["-c", "bad.toml"], "-c bad.toml: "),
    (["-c", "lists.toml"], "-c lists.toml: The value for key strategy needs to be of type"),
    (["-c", "folder.toml"], "-c folder.toml: there is no such file"),
    (["-c", 'dataset="wards.csv"'], "dataset is 'wards.csv', but there is no file or folder"),
    (["-c", "rounds=3"], "settings: there is no key rounds (given 3): did you mean num-server-rounds?"),
    (["-c", "num-clients=3"], "settings: there is no key num-clients (given 3): the number of clients is --num-supern"),
    (["-c", 'lr-decay=0.9 imagesize=8 optimiser="adam"'], "settings: there is no key imagesize (given 8): did you"),
    (["-c", 'results-dir="a\\u0000b"'], "results-dir "),
    (["--num-supernodes", "0"], "--num-supernodes 0 must be above 0"),
    (["--resume", ""], "--resume is given an empty text: wanted a directory"),
    (["--results-dir", ""], "--results-dir is given an empty text: wanted a directory"),
    (["--results-dir", "ward.txt"], "results-dir "),
    (["--resume", "nowhere"], "resume=nowhere is not the directory of a run"),
    (["--num-cpus", "2"], "num_cpus=2 is for backend='ray', and this is 'in-process'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "sentence"), TYPED, ids=[" ".join(arguments) for arguments, _ in TYPED])
@pytest.mark.usefixtures("workplace")
def test_a_wrong_command_is_one_sentence_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "ward.txt").write_text("x")
    (tmp_path / "bad.toml").write_text('strategy = "fedavg\n')
    (tmp_path / "lists.toml").write_text('strategy = ["fedavg"]\n')
    (tmp_path / "folder.toml").mkdir()
    before = sorted(tmp_path.iterdir())
    assert main(["run", "--backend", "in-process", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--num-supernodes", "x"], "argument --num-supernodes: invalid int value: 'x'; fedham run --help says"),
        (["run", "--backend", "gpu"], "argument --backend: invalid choice: 'gpu' (choose from"),
        (["run", "extra"], "unrecognized arguments: extra; fedham run --help says more"),
        (["run", "-c"], "argument -c/--run-config: expected one argument; fedham run --help says more"),
        (["settings", "--sections"], "unrecognized arguments: --sections; fedham settings --help says more"),
    ],
)
def test_an_option_that_there_is_not_is_one_sentence_too(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1
