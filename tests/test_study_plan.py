"""From study.toml to a plan: what is run, with which settings, and what is said of a file that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedham_flwr import registry
from fedham_flwr.cli import main
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.search_space import Choice, Range
from fedham_flwr.study import estimate
from fedham_flwr.study.plan import Plan, read_plan

ROOT = Path(__file__).resolve().parents[1]
Read = Callable[[str], Plan]


@pytest.fixture
def plan(tmp_path: Path) -> Read:
    """Reads a study out of its text."""

    def read(text: str) -> Plan:
        (tmp_path / "study.toml").write_text(text)
        return read_plan(tmp_path / "study.toml")

    return read


def test_a_plan_of_one_line_has_the_floors_one_task_and_one_seed(plan: Read) -> None:
    found = plan('methods = ["fedper"]')
    assert [method.label for method in found.methods] == ["local", "fedavg", "fedper"]
    assert found.floors == ("local", "fedavg")
    assert [(task.label, task.clients) for task in found.tasks] == [("digits", 10)]
    assert (found.name, found.seeds, found.reference, found.tune) == ("study", (0,), "local", None)
    assert found.warnings == ()


def test_floors_are_methods_with_a_trait_and_stand_first(plan: Read) -> None:
    assert [name for name in registry.METHODS if registry.method(name).floor] == ["local", "fedavg"]
    assert [m.label for m in plan('methods = ["fedper", "fedavg"]').methods] == ["local", "fedavg", "fedper"]
    without = plan('methods = ["fedper", "fedavg"]\nfloors = false')
    assert [m.label for m in without.methods] == ["fedavg", "fedper"]
    assert (without.floors, without.reference) == (("fedavg",), "fedavg")
    assert plan('methods = ["fedper"]\nfloors = false').reference == "fedper"


WHOLE = """
methods = ["fedper", "heur"]
seeds = 3
clients = 7
reference = "fedper"
[settings]
momentum = 0.1
weight-decay = 0.1
batch-size = 11
[method.heur]
strategy = "pfedla"
pfedla.retained-layers = 1
weight-decay = 0.3
[task.a]
partitioner = "iid"
batch-size = 12
weight-decay = 0.2
[task.b]
clients = 4
[tune]
trials = 5
seeds = [7, 8]
rounds = 6
[tune.methods.heur]
pfedla.embedding-dim = [10, 100]
"""


def test_settings_of_a_run_settings_then_task_then_method_then_tuned(plan: Read) -> None:
    found = plan(WHOLE)
    spec = found.report_spec("heur", "a", 2, {"batch-size": 13})
    assert dict(spec.settings) == {
        "momentum": 0.1, "batch-size": 13, "weight-decay": 0.3, "pfedla.retained-layers": 1, "strategy": "pfedla",
        "partitioner": "iid", "seed": 2, "data-seed": 0, "score-test": "closing",
    }  # fmt: skip
    assert (spec.role, spec.method, spec.task, spec.seed, spec.trial, spec.clients) == ("report", "heur", "a", 2, -1, 7)
    assert found.report_spec("fedper", "b", 0, {}).clients == 4
    assert found.report_spec("fedper", "b", 0, {}).settings["batch-size"] == 11
    assert (found.seeds, found.reference) == ((0, 1, 2), "fedper")


def test_tuning_runs_never_score_the_test_split_and_have_their_own_rounds(plan: Read) -> None:
    found = plan(WHOLE)
    spec = found.tuning_spec("fedper", "a", 7, 3, {"learning-rate": 0.5, "score-test": "always"})
    assert (spec.role, spec.trial, spec.seed) == ("tuning", 3, 7)
    assert spec.settings["score-test"] == "never"
    assert spec.settings["model-cards"] == 0
    assert spec.settings["cross-evaluation"] is False
    assert spec.settings["num-server-rounds"] == 6
    assert spec.settings["learning-rate"] == 0.5
    assert spec.settings["data-seed"] == 0
    assert "num-server-rounds" not in found.report_spec("fedper", "a", 0, {}).settings


def test_the_test_split_may_be_scored_always_and_data_seeds_set(plan: Read) -> None:
    found = plan('methods = ["fedper"]\n[settings]\nscore-test = "always"\ndata-seed = 5\ncross-evaluation = true')
    report, tuning = found.report_spec("fedper", "digits", 1, {}), found.tuning_spec("fedper", "digits", 9, 0, {})
    assert (report.settings["score-test"], report.settings["data-seed"]) == ("always", 5)
    assert (tuning.settings["score-test"], tuning.settings["data-seed"]) == ("never", 5)
    (warning,) = plan('methods = ["fedper"]\n[settings]\ndata-seed = -1').warnings
    assert "can be among the test samples of other seeds" in warning


def test_what_is_searched_has_the_same_trials_for_all_and_a_label_keeps_what_it_sets(plan: Read) -> None:
    found = plan(WHOLE)
    assert {pair[0] for pair in found.spaces} == {"local", "fedavg", "fedper", "heur"}
    assert set(found.space("local", "a")) == {"learning-rate"}
    assert found.space("heur", "a")["pfedla.embedding-dim"] == Choice((10, 100), 100)
    heur = plan(
        'methods = ["heur"]\n[method.heur]\nstrategy = "pfedla"\npfedla.hypernetwork-learning-rate = 2.0\n[tune]'
    )
    assert set(heur.space("heur", "digits")) == {"learning-rate"}
    one = plan('methods = ["fedper"]\n[tune.space]\nbatch-size = [10, 20]\nmomentum = {low = 0.0, high = 0.9}')
    assert one.space("local", "digits") == {"batch-size": Choice((10, 20), 10), "momentum": Range(0.0, 0.9, 0.9)}
    assert plan('methods = ["fedper"]').space("fedper", "digits") == {}


def test_runs_may_take_as_long_as_they_like_or_so_many_minutes(plan: Read) -> None:
    assert [plan(f'methods = ["fedper"]\n{more}').minutes for more in ("", "minutes-per-run = 90")] == [0, 90]


def test_a_file_may_hold_settings_of_several_methods_and_says_which_nobody_reads(plan: Read) -> None:
    text = 'methods = ["pfedla"]\n[settings]\npfedla.retained-layers = 1\n'
    assert plan(text).warnings == ()
    (warning,) = plan(f"{text}fedprox.mu = 0.5").warnings
    assert warning == "[settings] fedprox.mu: no method of this study reads it"


def test_settings_that_no_run_reads_are_said_with_the_reason(plan: Read) -> None:
    text = 'methods = ["fedper"]\n[settings]\nmomentum = 0.5\nnovel-clients = 1\nnovel-turns = 3\n'
    stopping = f"{text}early-stopping.patience = 3\nearly-stopping.min-delta = 0.0\n"
    told = "[settings] settings that have no effect: novel-turns = 3 (no run reads it)"
    assert plan(text).warnings == (told,)
    assert plan(stopping).warnings == (f'{told}, early-stopping.patience = 3 (callbacks is "")',)
    assert plan(f'{stopping}callbacks = "early-stopping"').warnings == (told,)
    assert plan(text.replace('"fedper"', '"fedper", "pfedhn"')).warnings == ()
    where = f'{text.replace("turns", "steps")}[task.a]\nalpha = 0.5\n[method.fedper]\nbeta1 = 0.5\noptimizer = "sgd"\n'
    assert plan(where).warnings == (
        "[task.a] settings that have no effect: alpha = 0.5 (partitioner is pathological)",
        "[method.fedper] settings that have no effect: beta1 = 0.5 (optimizer is sgd)",
    )
    searched = plan(f'{where.replace("beta1", "beta2")}[tune.methods.fedper]\noptimizer = ["sgd", "adam"]\n')
    assert [note.partition(":")[0] for note in searched.warnings] == ["[task.a] settings that have no effect"]


def test_what_has_no_effect_is_told_of_trials_as_they_are_written(plan: Read) -> None:
    """A trial with another network has no settings of the user's own one."""
    text = 'methods = ["fedper"]\n[settings]\nbeta1 = 0.5\nmodel = "own_objects:Wide"\n'
    found = plan(f'{text}[tune.space]\nmodel = ["own_objects:Wide", "cnn"]\n')
    assert found.warnings[0] == "[settings] settings that have no effect: beta1 = 0.5 (optimizer is sgd)"


def test_a_space_with_fewer_points_than_trials_is_said(plan: Read) -> None:
    text = 'methods = ["fedper"]\n[tune]\ntrials = 3\n[tune.space]\nbatch-size = [5, 10]\n'
    notes = plan(f"{text}[task.a]\n[task.b]\nclients = 3").warnings
    fewer = "the space of batch-size has 2 different points, fewer than 3 trials"
    assert notes == (f"local: {fewer}", f"fedavg: {fewer}")


def test_trials_that_are_shorter_than_the_runs_are_said(plan: Read) -> None:
    text = 'methods = ["fedper"]\n[settings]\nnum-server-rounds = 30\n[tune]\nrounds = {}\n'
    (note,) = plan(text.format(15)).warnings
    assert note.startswith("[tune] rounds = 15 is fewer than the 30 of the runs, which favours values that learn fast")
    assert [plan(text.format(rounds)).warnings for rounds in (0, 30, 31)] == [(), (), ()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_precision_that_the_processor_imitates_is_said_once(plan: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'methods = ["fedper"]\n[settings]\nprecision = "bf16"\n[task.a]\n[task.b]\nclients = 3'
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    (note,) = plan(text).warnings
    assert note.startswith('precision="bf16" is several times slower than "fp32"')
    assert plan(text.replace("bf16", "fp32")).warnings == ()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert plan(text).warnings == ()


def test_a_metric_that_does_not_say_which_values_are_good_is_named(
    plan: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    lines = ["def wrong(outputs, targets): return 0.0", "def less(outputs, targets): return 0.0"]
    (tmp_path / "scores_of_mine.py").write_text("\n".join([*lines, "less.higher_is_better = False"]))
    text = 'methods = ["fedper"]\n[settings]\nmetrics = "{} accuracy"'
    assert plan(text.format("scores_of_mine:less")).warnings == ()
    (note,) = plan(text.format("scores_of_mine:wrong")).warnings
    assert note.startswith("metrics = scores_of_mine:wrong does not say which values are good, and larger ones are")
    assert "wrong.higher_is_better = False" in note


def test_a_method_of_a_users_own_has_a_label(plan: Read) -> None:
    found = plan('methods = ["mine"]\n[method.mine]\nstrategy = "own_methods:STOPS"')
    assert found.method("mine").strategy == "own_methods:STOPS"
    assert found.report_spec("mine", "digits", 0, {}).settings["strategy"] == "own_methods:STOPS"


def test_clients_are_those_of_the_task_of_the_study_or_of_the_data(plan: Read, tmp_path: Path, cache_dir: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("who,x,y\n" + "".join(f"{who},{n}.5,{n % 2}\n" for n in range(40) for who in "abc"))
    lines = [
        f'dataset = "{data}"',
        'client-column = "who"',
        'label-column = "y"',
        'feature-column = "x"',
        f'cache-dir = "{cache_dir}"',
    ]
    found = plan('methods = ["fedper"]\n[settings]\n' + "\n".join(lines))
    assert [(task.label, task.clients) for task in found.tasks] == [("data", 3)]


F = 'methods = ["fedper"]\n'
FAULTS = {
    'method = ["fedper"]': "[method] is ['fedper']: wanted a table",
    'methds = ["fedper"]': "there is no key methds (did you mean methods?)",
    "": "methods is not given: wanted a list of methods, such as",
    "methods = []": "methods = []: wanted a list of methods",
    'methods = ["fedpr"]': "methods names 'fedpr', which is no method (did you mean fedper?), and no [method.fedpr]",
    'methods = ["fedper", "fedper"]': "methods names 'fedper' twice",
    'methods = ["a", "A"]': "methods names 'A' twice",
    'methods = ["own_methods:STOPS"]': 'an import path needs a label, such as methods = ["mine"] and [method.mine]',
    'methods = ["a/b"]': "methods names 'a/b': a label becomes part of file names: wanted letters, digits, hyphens",
    F + 'name = "../x"': "name = '../x' names a folder: wanted letters",
    F + "seeds = [1, 1]": "seeds = [1, 1]: wanted a list of different whole numbers from 0 up",
    F + "seeds = -1": "seeds = -1: wanted a list",
    F + "seeds = true": "seeds = True: wanted a list",
    F + "seeds = 20260101": "seeds = 20260101: wanted a list of different whole numbers from 0 up, or their number, up",
    F + "minutes-per-run = 0": "minutes-per-run = 0: wanted a whole number of at least 1",
    F + "clients = 0": "clients = 0: wanted a whole number of at least 1",
    F + "floors = 1": "floors = 1: wanted true or false",
    F + 'reference = "loca"': "reference = 'loca' is no method of the study (did you mean local?)",
    F + 'dataset = "x"': "there is no key dataset (a setting belongs in [settings])",
    F + "[method.fedpr]": "[method.fedpr] is of no method of the study (did you mean fedper?)",
    F + '[method.fedper]\nstrategy = "pfedla"': "fedper is a method itself; wanted another label",
    'methods = ["x"]\n[method.x]\nstrategy = "pfedl"': 'strategy = "pfedl" is no method (did you mean pfedla?)',
    'methods = ["x"]\n[method.x]\nstrategy = 3': "[method.x] strategy = 3: wanted the name of a method",
    'methods = ["x"]\n[method.x]\nstrategy = "none:THING"': 'x on digits: strategy="none:THING": there is no module',
    F + "[settings]\nseed = 3": "[settings] seed = 3: the seeds of a study are seeds = [...]",
    F + '[task.a]\nresults-dir = "x"': "[task.a] results-dir = 'x': the runs of a study lie in its own",
    F + '[method.fedper]\nresume = "x"': "[method.fedper] resume = 'x': a study goes on when",
    F + '[settings]\nstrategy = "local"': "[settings] strategy = 'local': the methods of a study are",
    F + '[settings]\nscore-test = "never"': "score-test = 'never': runs that tune never score the",
    F + "[settings]\nclients = 3": "[settings] clients = 3 is no setting: wanted clients above all",
    F + "[settings]\nrounds = 3": "every method on every task: there is no key rounds (given 3): did you",
    F + "[settings]\nalpha = [1]": "every method on every task: alpha=[1]: wanted a truth value, a",
    F + "[task.a]\n[task.b]\nalpha = -1.0": "local, fedavg, fedper on b: alpha=-1.0: wanted greater",
    F + '[task.a]\nclients = "x"': "[task.a] clients = 'x': wanted a whole number of at least 1",
    F + '[task."a b"]': "[task.a b]: a label becomes part of file names",
    F + "[task]\na = 3": "[task.a] is 3: wanted a table",
    F + "[method.fedper]\nfedprox.mu = 1.0": "fedper on digits: settings of another method or network",
    F + "[method.fedper]\ntest-fraction = 0.5": "methods are compared on the same data by the same",
    F + '[method.fedper]\nmetrics = "f1"': "[method.fedper] metrics = 'f1': methods are compared",
    'methods = ["x"]\n[method.x]\nstrategy = "fedavg"': "x on digits is the same as fedavg on digits: wanted one of",
    F + "[task.a]\n[task.b]": "fedper on b is the same as fedper on a",
    F + "[tune]\ntrial = 3": "[tune] there is no key trial (did you mean trials?)",
    F + "[tune]\ntrials = 0": "[tune] trials = 0: wanted a whole number of at least 1",
    F + '[tune]\nsampler = "tep"': "[tune] sampler = 'tep' (did you mean tpe?): wanted one of auto",
    F + "[tune]\nseeds = 2": "[tune] seeds = 2: wanted a list of different whole numbers from 0 up",
    F + "seeds = [1, 2]\n[tune]\nseeds = [2, 3]": "share 2: what chooses must not be what is reported",
    F + "[tune.methods.fedpro]": "[tune.methods.fedpro] is of no method of the study (did you mean",
    F + "[tune.space]\nmomentm = [0.1, 0.2]": "momentm is no setting: did you mean momentum?",
    F + "[tune.space]\nalpha = [0.1, 0.2]": "alpha is not searched",
    F + "[tune.space]\nmomentum = {lo = 1}": "[tune.space] momentum",
    F + '[settings]\ndataset = "./no.csv"\npartitioner = "files"': "task no: dataset is './no.csv', but",
    'methods = ["fedper"\n': "line 1, is no TOML: ",
    "methods = 3\nseeds = = 3": "line 2, is no TOML: Invalid value",
}


@pytest.mark.parametrize(("text", "said"), FAULTS.items(), ids=range(len(FAULTS)))
def test_what_is_wrong_is_said_with_what_was_wanted(plan: Read, text: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        plan(text)
    assert "study.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_all_faults_are_said_at_once_and_each_once(plan: Read) -> None:
    text = 'methods = ["fedper", "pfedl"]\nseeds = 0\n[settings]\nseed = 1\nrounds = 3\n'
    text += "[task.a]\nalpha = -1.0\n[tune]\ntrial = 1"
    with pytest.raises(UserError) as error:
        plan(text)
    said = str(error.value)
    for part in ("'pfedl'", "seeds = 0", "[settings] seed = 1", "there is no key rounds", "alpha=-1.0", "no key trial"):
        assert said.count(part) == 1, part


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml cannot be read \(No such file or directory\): wanted a TOML"):
        read_plan(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe4'")
    with pytest.raises(UserError, match=r"latin\.toml is no text in UTF-8"):
        read_plan(tmp_path / "latin.toml")


def test_a_method_that_is_not_for_these_data_is_refused_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: None
) -> None:
    monkeypatch.setattr(estimate, "PATIENCE", 0.0)
    (tmp_path / "study.toml").write_text('methods = ["fedtp"]\nfloors = false\n[settings]\nmodel = "mlp"')
    assert main(["study", "study.toml", "--dry-run"]) == 1
    said = capsys.readouterr()
    assert "time " not in said.out
    assert re.match(r"error: runs of fedtp on digits: .+", said.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.toml"]


REFUSED = {
    "validation-fraction = 0.0\n[tune]\ntrials = 2": "no client has validation samples to tune on: wanted a larger",
    'model = "leaves:build_model"': "code of your own ends the process with sys.exit(5)",
}


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_no_run_could_do_is_said_once_before_anything_is_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "PATIENCE", 0.0)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "leaves.py").write_text("def build_model(shape, outputs):\n    raise SystemExit(5)\n")
    (tmp_path / "study.toml").write_text('methods = ["local", "fedavg"]\nclients = 3\n[settings]\n' + text)
    assert main(["study", "study.toml", "--dry-run"]) == 1
    assert capsys.readouterr().err.startswith(f"error: runs of every method on every task: {REFUSED[text]}")


@pytest.mark.usefixtures("workplace")
def test_the_example_of_the_docs_is_a_study_and_its_dry_run_says_what_it_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "PATIENCE", 0.0)  # everything is opened, and nothing is timed
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "study.md").read_text(), re.DOTALL)
    (tmp_path / "example.toml").write_text(text)
    assert main(["study", "example.toml", "--dry-run", "--workers", "3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "study    digits-splits: 5 methods, 2 tasks, 3 seeds"
    assert said[1] == "methods  local (floor): 1 setting searched (learning-rate)"
    assert said[5].startswith("         heurpfedla, which is pfedla: 2 settings searched")
    assert said[6:8] == ["tasks    two-classes: 10 clients", "         dirichlet: 6 clients"]
    assert said[8:11] == [
        "seeds    0, 1, 2; of tuning: 1000",
        "runs     at most 40 to tune and 30 to report; 0 of them are there",
        "workers  3",
    ]
    assert said[11:] == ["time     not known before the first runs are done"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example.toml"]


@pytest.mark.usefixtures("workplace")
def test_a_dry_run_measures_a_few_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.toml").write_text(
        'methods = ["fedavg"]\nfloors = false\nclients = 3\n[settings]\nbatch-size = 50'
    )
    assert main(["study", "study.toml", "--dry-run"]) == 0
    time = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"time     about [\d.]+ s, an estimate: by one round and a few batches, tried here", time)


STUDIES = [file for file in sorted(ROOT.glob("benchmarks/studies/*.toml")) if "methods = " in file.read_text()]


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_studies_of_the_project_are_right(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = read_plan(file)
    assert found.floors == ("local", "fedavg")
    assert [note for note in found.warnings if not note.startswith(("[tune] rounds", 'precision="bf16"'))] == []


def test_seven_methods_three_seeds_and_eight_trials_of_the_digits() -> None:
    found = read_plan(ROOT / "benchmarks" / "studies" / "digits.toml")
    labels = ["local", "fedavg", "fedper", "pfedla", "fedham", "fedrep", "ditto"]
    assert [method.label for method in found.methods] == labels
    assert found.tune is not None
    assert (found.tune.trials, found.seeds, found.tasks[0].clients) == (8, (0, 1, 2), 10)
