from io import StringIO

import pytest
from rich.console import Console

from fedham_flwr.core.records import Failure, Row
from fedham_flwr.reporting.console import make_console
from fedham_flwr.reporting.progress import Progress, line_values
from fedham_flwr.reporting.terminal import data_table, final_table, settings_table

ESCAPE = "\x1b"


def plain(width: int = 120) -> Console:
    return Console(file=StringIO(), width=width, force_terminal=False)


def terminal(width: int = 120, kind: str = "xterm-256color") -> Console:
    return Console(file=StringIO(), width=width, force_terminal=True, _environ={"TERM": kind})


def text(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def row(client: str, value: float, **changes) -> Row:
    return Row(3, client, "test", "personal", "after", "accuracy", value, 10)._replace(**changes)


def ticks(*seconds: float):
    return iter(seconds).__next__


# ---- a round --------------------------------------------------------------------------------------------------------


def test_line_values_are_plain_means_of_test_accuracy():
    rows = [
        row("a", 0.5, n=1000),
        row("b", 1.0, n=1),
        row("a", 0.25, phase="before"),
        row("a", 0.1, split="validation"),
        row("a", 9.0, metric="loss"),
    ]
    values = line_values(rows, cohort=4, replies=2, seconds=1.5)
    assert values == {"personal after": 0.75, "personal before": 0.25, "cohort": 4, "replies": 2, "seconds": 1.5}
    assert list(values)[:2] == ["personal after", "personal before"]


def test_away_from_a_terminal_a_round_is_one_plain_line():
    console = plain(width=20)  # shorter than the line, which must not wrap
    with Progress(20, "fedper", console) as progress:
        progress.round(3, {"personal before": 0.9134, "cohort": 10, "replies": 9, "seconds": 1.24})
    assert text(console) == "round 3/20  personal before 0.913  9 of 10 clients  1.2 s\n"


def test_what_is_unknown_is_left_out_of_the_line():
    console = plain()
    with Progress(2, "fedper", console) as progress:
        progress.round(1, line_values([], cohort=2, replies=2, seconds=0.5))
        progress.round(2, {"personal after": 1.0})
    assert text(console) == "round 1/2  2 of 2 clients  0.5 s\nround 2/2  personal after 1.000\n"


def test_in_a_terminal_the_bar_shows_round_values_and_time_left():
    console = terminal()
    with Progress(20, "fedper", console, clock=ticks(0.0, 2.0, 6.0)) as progress:
        progress.round(1, {"personal after": 0.5, "cohort": 10, "replies": 10, "seconds": 2})
        progress.round(2, {"personal after": 0.625, "cohort": 10, "replies": 10, "seconds": 4})
    last = text(console)[text(console).rindex("fedper") :]
    # rounds of 2 and 4 seconds: 3 on average, and 18 more to come
    assert "round 2/20" in last
    assert "3.0 s/round  0:54 left" in last
    assert "personal after 0.625  10 of 10 clients" in last
    assert "failed" not in last
    assert text(console).endswith(ESCAPE + "[?25h")  # the cursor is back


def test_the_bar_fits_80_columns():
    console = terminal(width=80)
    with Progress(200, "heurpfedla", console, clock=ticks(0.0, 100.0)) as progress:
        progress.failed([Failure(1, "train", "3", "x")] * 12)
        progress.round(
            1, {"global before": 0.5, "personal before": 0.5, "personal after": 0.5, "cohort": 1, "replies": 1}
        )
    shown = text(console)
    for part in ("heurpfedla", "round 1/200", "100.0 s/round", "5:31:40 left", "12 failed", "1 of 1 clients"):
        assert part in shown.replace("\n", " ")


def test_the_time_left_follows_the_last_ten_rounds():
    console = terminal()
    with Progress(13, "fedper", console, clock=ticks(0.0, 1000.0, *(1001.0 + k for k in range(10)))) as progress:
        for number in range(1, 12):
            progress.round(number, {})
    assert "1.0 s/round  0:02 left" in text(console)[text(console).rindex("round 11/13") :]


def test_a_dumb_terminal_gets_lines():
    console = terminal(kind="dumb")
    with Progress(2, "fedper", console) as progress:
        progress.round(1, {"personal after": 1.0})
    assert "round 1/2  personal after 1.000\n" in text(console)


def test_the_bar_stops_when_the_run_fails():
    console = terminal()
    with pytest.raises(RuntimeError, match="lost"), Progress(2, "fedper", console):
        raise RuntimeError("lost")
    assert text(console).endswith(ESCAPE + "[?25h")


# ---- failures -------------------------------------------------------------------------------------------------------


def test_a_failure_is_one_line_with_its_first_line():
    console = plain(width=20)
    with Progress(5, "fedper", console) as progress:
        progress.failed([Failure(3, "train", "4", "ValueError: no samples in split train\n  at line 3")])
    assert text(console) == "round 3  client 4 failed in train: ValueError: no samples in split train\n"


def test_the_same_error_is_printed_once_with_a_count():
    console = plain()
    failures = [Failure(3, "train", str(client), "KeyError: 'a'") for client in range(7)]
    with Progress(5, "fedper", console) as progress:
        progress.failed([*failures, Failure(3, "train", "9", "OSError"), Failure(3, "evaluate", "9", "OSError")])
    assert text(console).splitlines() == [
        "round 3  7 clients (0, 1, 2, 3, 4, ...) failed in train: KeyError: 'a'",
        "round 3  client 9 failed in train: OSError",
        "round 3  client 9 failed in evaluate: OSError",
    ]


def test_many_different_errors_do_not_flood_the_screen():
    console = plain()
    with Progress(5, "fedper", console) as progress:
        progress.failed([Failure(1, "train", str(client), f"error {client}") for client in range(25)])
    lines = text(console).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 15 more errors, in rounds.jsonl"


def test_an_error_cannot_steer_the_terminal():
    console = plain()
    with Progress(5, "fedper", console) as progress:
        progress.failed([Failure(1, "train", "4\x1b[2J", "bad \x1b[31m\x07value [red]x[/red] :smile:\rnew")])
    assert text(console) == "round 1  client 4 [2J failed in train: bad  [31m value [red]x[/red] :smile: new\n"


def test_failures_are_red_in_a_terminal_and_counted_in_the_bar():
    console = terminal()
    with Progress(5, "fedper", console, clock=ticks(0.0, 1.0)) as progress:
        progress.failed([Failure(1, "train", "4", "OSError")])
        progress.failed([Failure(1, "train", "5", "OSError")])
        progress.round(1, {})
    assert f"{ESCAPE}[31mround 1  client 4 failed in train: OSError{ESCAPE}[0m" in text(console)
    assert f"{ESCAPE}[31mround 1/5" not in text(console)  # the colour stays out of the bar
    assert f"{ESCAPE}[1;31m2 failed" in text(console)


# ---- tables ---------------------------------------------------------------------------------------------------------

DEFAULTS = {"strategy": "fedper", "alpha": 0.1, "augment": False, "cache-dir": "", "seed": 0, "fedprox.mu": 0.01}


def test_settings_are_all_shown_and_the_changed_ones_marked():
    console = plain(width=44)
    settings_table({**DEFAULTS, "seed": 3, "augment": True, "cache-dir": "/a/b c"}, DEFAULTS, console)
    assert text(console).splitlines() == [
        "settings (* differs from the default)",
        "  strategy = fedper   * cache-dir = /a/b c",
        "  alpha = 0.1         * seed = 3",
        "* augment = true        fedprox.mu = 0.01",
    ]


def test_a_setting_without_a_default_is_marked_and_an_empty_one_visible():
    console = plain(width=20)
    settings_table({"cache-dir": "", "new": 1}, {"cache-dir": ""}, console)
    assert text(console).splitlines()[1:] == ['  cache-dir = ""', "* new = 1"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_long_setting_has_its_own_line_and_is_never_cut(width):
    console = plain(width)
    folder = "/data/" + "x" * 150
    settings_table({**DEFAULTS, "dataset": folder}, {**DEFAULTS, "dataset": folder}, console)
    lines = text(console).splitlines()
    assert lines[-1] == f"  dataset = {folder}"
    assert all(len(line) <= width for line in lines[:-1])


def test_a_changed_setting_is_bold_in_a_terminal():
    console = terminal(width=30)
    settings_table({**DEFAULTS, "seed": 3}, DEFAULTS, console)
    assert f"{ESCAPE}[1m* seed = 3" in text(console)
    assert text(console).count(f"{ESCAPE}[1m") == 1


def counts(client: str, train: int, classes: int = 2) -> dict[str, int | str]:
    return {"client": client, "train": train, "validation": 10, "test": 30, "classes": classes}


def words(console: Console) -> list[str]:
    return [" ".join(line.split()) for line in text(console).splitlines() if line.strip() and "─" not in line]


def test_up_to_twenty_clients_are_listed():
    console = plain(80)
    data_table([counts(f"[b]{k}", 100 + k) for k in range(20)], console)
    assert words(console)[0] == "client train validation test classes"
    assert words(console)[1] == "[b]0 100 10 30 2"
    assert len(words(console)) == 21


def test_more_than_twenty_clients_are_summed_up():
    console = plain(80)
    # 0 .. 21: the sum is 231 and the median 10.5
    data_table([counts(str(k), k, classes=k % 3) for k in range(22)], console)
    assert words(console) == [
        "22 clients train validation test classes",
        "total 231 220 660 -",
        "min 0 10 30 0",
        "median 10.5 10 30 1",
        "max 21 10 30 2",
    ]


def entry(**changes) -> dict[str, object]:
    return {
        "round": 20,
        "model": "personal",
        "phase": "after",
        "split": "test",
        "metric": "accuracy",
        "mean": 0.9126,
        "weighted-mean": 0.8,
        "std": 0.05,
        "worst-decile": 0.7,
        "clients": 10,
        **changes,
    }


@pytest.mark.parametrize("width", [80, 120])
def test_the_final_table_shows_test_accuracy_of_both_choices(width):
    console = plain(width)
    final = [entry(), entry(split="validation"), entry(metric="loss"), entry(model="global", **{"worst-decile": None})]
    chosen = [entry(round=15, **{"chosen-on": "validation"}), entry(model="global", **{"chosen-on": "last round"})]
    final_table({"final": final, "selected": chosen}, console)
    assert words(console)[1:] == [
        "test accuracy model phase mean mean std 10 % clients round",
        "last round personal after 0.913 0.800 0.050 0.700 10 20",
        "last round global after 0.913 0.800 0.050 - 10 20",
        "validation personal after 0.913 0.800 0.050 0.700 10 15",
    ]
    assert all(len(line) <= 80 for line in text(console).splitlines())


def test_novel_clients_have_lines_of_their_own_in_the_final_table():
    console = plain(80)
    novel = entry(population="novel", phase="before", clients=2, mean=0.25)
    final_table({"final": [entry(population="member"), novel], "selected": []}, console)
    assert words(console)[2:] == [
        "last round personal after 0.913 0.800 0.050 0.700 10 20",
        "novel clients personal before 0.250 0.800 0.050 0.700 2 20",
    ]
    assert all(len(line) <= 80 for line in text(console).splitlines())


def test_the_line_of_the_models_that_were_written_comes_first_and_is_named():
    console = plain(80)
    final = [entry(), entry(phase="before", mean=0.5), entry(population="novel")]
    chosen = [entry(**{"chosen-on": "validation"}), entry(phase="before", **{"chosen-on": "validation"})]
    what = {"model": "personal", "phase": "before"}
    final_table({"final": final, "selected": chosen, "exported": what}, console)
    assert words(console)[2:] == [
        "last round personal before 0.500 0.800 0.050 0.700 10 20",
        "last round personal after 0.913 0.800 0.050 0.700 10 20",
        "novel clients personal after 0.913 0.800 0.050 0.700 10 20",
        "validation personal before 0.913 0.800 0.050 0.700 10 20",
        "validation personal after 0.913 0.800 0.050 0.700 10 20",
        "model/*.safetensors are the models of the line: last round personal before",
    ]


def test_without_a_test_accuracy_the_final_table_says_so():
    console = plain()
    final_table({"final": [entry(metric="loss")], "selected": []}, console)
    assert text(console) == "no test accuracy was measured\n"


def test_nothing_but_text_reaches_a_file(capsys):
    settings_table({**DEFAULTS, "seed": 3}, DEFAULTS)
    data_table([counts("Zürich", 5)])
    final_table({"final": [entry()], "selected": []})
    with Progress(2, "fedper") as progress:
        progress.round(1, {"personal after": 1.0})
        progress.failed([Failure(1, "train", "4", "OSError")])
    shown = capsys.readouterr().out
    assert ESCAPE not in shown
    assert "\r" not in shown
    for part in ("* seed = 3", "Zürich", "last round", "round 1/2", "client 4 failed"):
        assert part in shown


def test_the_console_is_wide_away_from_a_terminal(capsys):
    assert make_console().width == 120
