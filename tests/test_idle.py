"""Settings without effect are said in one line before the first round, whichever way a run is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from own_objects import linear, slopes
from presets import network

from fedham_flwr import simulate
from fedham_flwr.cli import overrides, run_command
from fedham_flwr.client_app import make_client_app
from fedham_flwr.core.errors import UserError
from fedham_flwr.core.threads import one_thread
from fedham_flwr.idle import Asked, changed, check_idle, check_sections
from fedham_flwr.models.grouping import manifest_of
from fedham_flwr.reasons import OF_FEDTPS_HYPERNETWORK, REASONS, Facts
from fedham_flwr.runners.in_process import InProcessGrid
from fedham_flwr.server_app import make_server_app
from fedham_flwr.settings import Value, defaults, parse

IMAGES: dict[str, Any] = {
    "network": "digits-cnn", "shape": (1, 8, 8), "target": "class", "partitioned": True,
    "manifest": manifest_of(network("fedavg"), []),
}  # fmt: skip
TEXT: dict[str, Any] = {"network": "char-transformer", "shape": (80,), "target": "next-token", "partitioned": True}
NEWS: dict[str, Any] = {"network": "fasttext", "shape": (80, 99, 2, 0), "target": "class", "partitioned": True}
SERIES: dict[str, Any] = {"network": "cnn1d", "shape": (6, 80, 1, 0), "target": "class", "partitioned": True}


def said(caplog: pytest.LogCaptureFixture, given: dict[str, Value], **facts: Any) -> str:
    """The line, without how it begins; empty if there is none."""
    caplog.clear()
    check_idle(Asked(given.keys()), Facts(parse(given), **{**IMAGES, **facts}))
    (line,) = caplog.messages or [""]
    return line.removeprefix("settings that have no effect: ")


DEAL = "own_objects:by_turns"
OWN_STEPS = "strategy is perfedavg, which takes steps of its own"
FEDTP = {f"fedtp.{key}": defaults()[f"fedtp.{key}"] for key in OF_FEDTPS_HYPERNETWORK}
CASES: list[tuple[dict[str, Value], str]] = [
    ({"alpha": 0.5}, "alpha=0.5 (partitioner is pathological)"),
    ({"alpha": 0.1}, "alpha=0.1 (partitioner is pathological)"),  # the default, but given
    ({"classes-per-client": 3, "partitioner": "iid"}, "classes-per-client=3 (partitioner is iid)"),
    ({"owner-share": 0.5}, "owner-share=0.5 (partitioner is pathological)"),
    ({"owner-share": 0.3, "partitioner": DEAL}, f"owner-share=0.3 (partitioner is {DEAL})"),
    ({"groups": 2}, "groups=2 (partitioner is pathological)"),
    ({"partitioner": "files", "alpha": 1.0}, "alpha=1.0 (partitioner is files)"),
    ({"momentum": 0.5, "optimizer": "adam"}, "momentum=0.5 (optimizer is adam)"),
    ({"momentum": 0.0, "optimizer": "adam"}, ""),  # is off
    ({"momentum": 0.5, "nesterov": True, "strategy": "perfedavg"},
     f"momentum=0.5 ({OWN_STEPS}), nesterov=true ({OWN_STEPS})"),
    ({"beta1": 0.5, "beta2": 0.9}, "beta1=0.5 (optimizer is sgd), beta2=0.9 (optimizer is sgd)"),
    ({"local-epochs": 2, "local-steps": 3}, "local-epochs=2 (local-steps is 3)"),
    ({"schedule-every": 3}, "schedule-every=3 (schedule is constant)"),
    ({"schedule-factor": 0.3, "schedule": "cosine"}, "schedule-factor=0.3 (schedule is cosine)"),
    ({"min-learning-rate": 0.001, "schedule": "step"}, "min-learning-rate=0.001 (schedule is step)"),
    ({"novel-steps": 3, "novel-turns": 2}, "novel-steps=3 (novel-clients is 0), novel-turns=2 (novel-clients is 0)"),
    *[({"novel-clients": 1, "novel-turns": 3, "strategy": each},
       f"novel-turns=3 (strategy is {each}, of which novel clients adapt alone)") for each in ("fedavg", "pfedla")],
    *[({"max-examples-per-client": 9, "strategy": each},
       f"max-examples-per-client=9 (strategy is {each}, which counts no samples)")
      for each in ("local", "fedgh", "pfedla")],
    ({"max-examples-per-client": 9, "strategy": "fedham"},
     "max-examples-per-client=9 (strategy is fedham, which counts no samples with these settings)"),
    ({"max-examples-per-client": 9, "strategy": "fedproto", "fedproto.weights": "clients"},
     "max-examples-per-client=9 (strategy is fedproto, which counts no samples with these settings)"),
    ({"personal-epochs": 9, "strategy": "fedham"},
     'personal-epochs=9 (personal is "none", and clients keep no layer)'),
    ({"personal-epochs": 9, "personal-training": "after-rounds", "strategy": "fedham"},
     'personal-epochs=9 (personal is "none", and clients keep no layer), '
     'personal-training="after-rounds" (personal is "none", and clients keep no layer)'),
    ({"cross-evaluation-clients": 9}, "cross-evaluation-clients=9 (cross-evaluation is false)"),
    ({"dp.delta": 0.1}, "dp.delta=0.1 (dp.epsilon is 0.0)"),
    ({"dp.clipping-norm": 1.0}, "dp.clipping-norm=1.0 (dp.epsilon is 0.0)"),
    ({"dp.sensitivity": 1.0}, "dp.sensitivity=1.0 (dp.epsilon is 0.0)"),
    ({"server.trim": 0.2, "server.bad-clients": 2}, 'server.trim=0.2 (server.aggregation is "mean"), '
     'server.bad-clients=2 (server.aggregation is "mean")'),
    ({"server.selected": 2, "server.aggregation": "krum"}, 'server.selected=2 (server.aggregation is "krum")'),
    ({"server.learning-rate": 0.5, "server.momentum": 0.5}, 'server.learning-rate=0.5 (server.optimizer is "none"), '
     'server.momentum=0.5 (server.optimizer is "none")'),
    ({"server.beta2": 0.5, "server.tau": 0.5, "server.optimizer": "momentum"},
     'server.beta2=0.5 (server.optimizer is "momentum"), server.tau=0.5 (server.optimizer is "momentum")'),
    ({"server.beta2": 0.5, "server.optimizer": "adagrad"}, 'server.beta2=0.5 (server.optimizer is "adagrad")'),
    ({"max-examples-per-client": 9, "server.aggregation": "median"},
     "max-examples-per-client=9 (server.aggregation is median, which counts no samples)"),
    ({"server.aggregation": "krum", "strategy": "pfedla"},
     'server.aggregation="krum" (strategy is pfedla, which takes no mean of models)'),
    ({"server.optimizer": "adam", "server.tau": 0.5, "strategy": "local"},
     'server.optimizer="adam" (strategy is local, which takes no mean of models), server.tau=0.5 (strategy is local, '
     "which takes no mean of models)"),
    ({"sequence-length": 9}, "sequence-length=9 (the data are no text)"),
    ({"vocabulary": "ab"}, 'vocabulary="ab" (the data are no text)'),
    ({"min-characters": 9}, "min-characters=9 (the data are no text)"),
    ({"text.unit": "word"}, 'text.unit="word" (the data are no text)'),
    ({"text.tokenizer": "x"}, 'text.tokenizer="x" (the data are no text)'),
    ({"text.buckets": 9}, "text.buckets=9 (the data are no text)"),
    ({"series.length": 9}, "series.length=9 (the data are no series)"),
    ({"series.stride": 9}, "series.stride=9 (the data are no series)"),
    ({"series.time": "t"}, 'series.time="t" (the data are no series)'),
    ({"series.recording": "t"}, 'series.recording="t" (the data are no series)'),
    ({"series.gap": 9.0}, "series.gap=9.0 (the data are no series)"),
    ({"series.label": "majority"}, 'series.label="majority" (the data are no series)'),
    ({"series.split": "recording"}, 'series.split="recording" (the data are no series)'),
    ({"mlp.width": 3}, "mlp.width=3 (the network is digits-cnn)"),
    ({"torchvision.norm": "group"}, 'torchvision.norm="group" (the network is digits-cnn)'),
    ({"image.resize": "crop"}, 'image.resize="crop" (image-size is 0)'),
    ({"table.decimal": ","}, 'table.decimal="," (the data are no table)'),
    ({"table.missing": "x"}, 'table.missing="x" (the data are no table)'),
    ({"table.categories": "found"}, 'table.categories="found" (the data are no table)'),
    ({"table.schema": "s.toml"}, 'table.schema="s.toml" (the data are no table)'),
    ({"early-stopping.patience": 3}, 'early-stopping.patience=3 (callbacks is "")'),
    ({"early-stopping.metric": "loss"}, 'early-stopping.metric="loss" (callbacks is "")'),
    ({"early-stopping.min-delta": 0.1}, 'early-stopping.min-delta=0.1 (callbacks is "")'),
    ({"early-stopping.min-rounds": 3}, 'early-stopping.min-rounds=3 (callbacks is "")'),
    ({"tracking.project": "x", "tracker": "tensorboard"}, 'tracking.project="x" (tracker is "tensorboard")'),
    ({"tracking.run-name": "x"}, 'tracking.run-name="x" (tracker is "")'),
    ({"tracking.mlflow-uri": "x", "tracker": "wandb"}, 'tracking.mlflow-uri="x" (tracker is "wandb")'),
    ({"tracking.wandb-mode": "online"}, 'tracking.wandb-mode="online" (tracker is "")'),
    ({"tracking.log-clients": True}, 'tracking.log-clients=true (tracker is "")'),
    ({"fedham.peers": 3, "strategy": "amn"}, "fedham.peers=3 (strategy is amn)"),
    ({"fedham.update-momentum": 0.5, "fedham.reference": "mean", "strategy": "fedham"},
     'fedham.update-momentum=0.5 (fedham.reference is "mean")'),
    ({"amn.update-momentum": 0.5, "amn.reference": "start", "strategy": "amn"},
     'amn.update-momentum=0.5 (amn.reference is "start")'),
    ({"fedamp.sigma": 3.0, "fedamp.variant": "heuristic", "strategy": "fedamp"},
     'fedamp.sigma=3.0 (fedamp.variant is "heuristic")'),
    ({"fedamp.self-weight": 0.3, "fedamp.sharpness": 3.0, "strategy": "fedamp"},
     'fedamp.self-weight=0.3 (fedamp.variant is "amp"), fedamp.sharpness=3.0 (fedamp.variant is "amp")'),
    ({**FEDTP, "fedtp.personal": "vanilla", "strategy": "fedtp"},
     ", ".join(f'{key}={value} (fedtp.personal is "vanilla")' for key, value in FEDTP.items())),
    ({"fedamp.alpha-every": 3, "strategy": "fedamp"}, "fedamp.alpha-every=3 (fedamp.alpha-decay is 1)"),
    ({"fedas.align-rate": 0.5, "fedas.align-epochs": 0, "strategy": "fedas"},
     "fedas.align-rate=0.5 (fedas.align-epochs is 0)"),
    ({"fedas.most-share": 0.3, "fedas.weights": "samples", "strategy": "fedas"},
     'fedas.most-share=0.3 (fedas.weights is "samples")'),
    ({"fedselect.limit": 0.3, "fedselect.every": 2, "fedselect.growth": 0.0, "strategy": "fedselect"},
     "fedselect.limit=0.3 (fedselect.growth is 0), fedselect.every=2 (fedselect.growth is 0)"),
    ({"knnper.neighbours": 3, "knnper.capacity": 9, "knnper.share": 0.0, "strategy": "knnper"},
     "knnper.neighbours=3 (knnper.share is 0), knnper.capacity=9 (knnper.share is 0)"),
    ({"knnper.scale": 3.0, "knnper.share": 0.0, "strategy": "knnper"}, "knnper.scale=3.0 (knnper.share is 0)"),
    ({"perfedavg.delta": 0.1, "strategy": "perfedavg"}, 'perfedavg.delta=0.1 (perfedavg.variant is "fo")'),
    ({"pfedgraph.sign": "code", "pfedgraph.reference": "mixture", "pfedgraph.penalty": 0.0, "strategy": "pfedgraph"},
     'pfedgraph.sign="code" (pfedgraph.penalty is 0), pfedgraph.reference="mixture" (pfedgraph.penalty is 0)'),
    *[({"clip-norm": 3.0, "strategy": each}, f"clip-norm=3.0 (strategy is {each}, of which no client sends a model)")
      for each in ("local", "fedproto", "fedgh")],
]  # fmt: skip


@pytest.mark.parametrize(("given", "line"), CASES, ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_what_is_not_read_is_said_with_the_reason(
    caplog: pytest.LogCaptureFixture, given: dict[str, Value], line: str
) -> None:
    assert said(caplog, given) == line


def test_what_depends_on_the_data_is_said_of_other_data(caplog: pytest.LogCaptureFixture) -> None:
    text: dict[str, Value] = {"min-characters": 9, "image-size": 8, "sequence-length": 9}
    text["image.unreadable"] = "leave-out"
    assert said(caplog, text, **TEXT) == (
        "image-size=8 (the data are no images), min-characters=9 (partitioner is pathological), "
        'image.unreadable="leave-out" (the data are no images)'
    )
    labelled: dict[str, Value] = {"min-characters": 9, "text.buckets": 9, "series.length": 9}
    assert said(caplog, labelled | {"text.tokenizer": "words.txt"}, **NEWS) == (
        "min-characters=9 (no next token is predicted), series.length=9 (the data are no series), "
        "text.buckets=9 (no words are hashed)"
    )
    turns: dict[str, Value] = {"novel-clients": 1, "novel-turns": 3, "strategy": "fedtp", "model": "vit"}
    assert said(caplog, turns) == "", "of a network that the method refuses there is nothing to say"
    attention = manifest_of(network("fedtp"), [])
    assert said(caplog, turns, manifest=attention) == ""
    vanilla = "strategy is fedtp, with settings by which novel clients adapt alone"
    assert said(caplog, {**turns, "fedtp.personal": "vanilla"}, manifest=attention) == f"novel-turns=3 ({vanilla})"
    dealt: dict[str, Value] = {"partitioner": "dirichlet", "alpha": 0.5, "samples-per-client": 3}
    own = "each client has data of its own, which are not dealt"
    assert said(caplog, {"client-column": "ward"}, partitioned=False) == f'client-column="ward" ({own})'
    assert said(caplog, dealt) == ""
    assert said(caplog, dealt, partitioned=False) == (
        f'partitioner="dirichlet" ({own}), alpha=0.5 ({own}), samples-per-client=3 ({own})'
    )


READ: list[tuple[dict[str, Value], dict[str, Any]]] = [
    ({"alpha": 0.5, "partitioner": "dirichlet", "samples-per-client": 9}, {}),
    ({"alpha": 0.5, "classes-per-client": 1, "partitioner": "own_objects:by_turns"}, {}),
    *[({"classes-per-client": 3, "partitioner": each}, {}) for each in ("pathological", "noniid-1", "noniid-2")],
    ({"owner-share": 0.5, "partitioner": "class-owners", "image-size": 8, "image.resize": "pad"}, {}),
    ({"groups": 2, "partitioner": "class-groups"}, {}),
    ({"groups": 2, "strategy": "clustered"}, {}),
    ({"groups": 2, "shift": "none rotated"}, {}),
    ({"client-column": "ward", "partitioner": "natural", "min-characters": 3, "vocabulary": "ab"}, TEXT),
    ({"sequence-length": 3, "char-transformer.depth": 1}, TEXT),
    ({"momentum": 0.5, "local-epochs": 2, "image.unreadable": "leave-out", "image.channels": "rgb"}, {}),
    ({"sequence-length": 3, "text.unit": "word", "text.buckets": 9, "fasttext.pairs": 3}, NEWS),
    ({"text.tokenizer": "words.txt"}, NEWS),
    ({"series.length": 9, "series.stride": 3, "series.time": "t", "series.gap": 3.0, "cnn1d.depth": 1}, SERIES),
    ({"series.recording": "r", "series.label": "majority", "series.split": "recording"}, SERIES),
    ({"momentum": 0.5, "nesterov": True, "local-epochs": 2}, {}),
    *[({"beta1": 0.5, "beta2": 0.9, "optimizer": each}, {}) for each in ("adam", "adamw")],
    ({"beta1": 0.5, "beta2": 0.9, "momentum": 0.5, "optimizer": "torch.optim:RMSprop"}, {}),
    ({"schedule-every": 3, "schedule-factor": 0.3, "schedule": "step"}, {}),
    ({"min-learning-rate": 0.001, "schedule": "cosine"}, {}),
    ({"personal-epochs": 2, "personal": "head", "strategy": "amn"}, {}),
    ({"personal-epochs": 2, "personal": "head", "personal-training": "after-rounds", "strategy": "amn"}, {}),
    ({"novel-steps": 3, "novel-clients": 1}, {}),
    ({"novel-turns": 2, "novel-clients": 1, "strategy": "pfedhn"}, {}),
    ({"max-examples-per-client": 9, "strategy": "fedas", "fedas.weights": "samples"}, {}),
    ({"max-examples-per-client": 9, "strategy": "fedham", "fedham.sample-power": 0.5}, {}),
    *[({"max-examples-per-client": 9, "strategy": each}, {}) for each in ("fedproto", "pfedgraph")],
    ({"cross-evaluation-clients": 9, "cross-evaluation": True}, {}),
    ({"dp.epsilon": 1.0, "dp.delta": 0.1, "dp.clipping-norm": 1.0, "dp.sensitivity": 1.0, "strategy": "fedavg"}, {}),
    ({"server.aggregation": "trimmed-mean", "server.trim": 0.2, "server.optimizer": "adam", "server.beta2": 0.5}, {}),
    ({"server.aggregation": "krum", "server.bad-clients": 2, "server.optimizer": "adagrad", "server.tau": 0.5}, {}),
    ({"server.aggregation": "multi-krum", "server.selected": 2, "server.optimizer": "momentum"}, {}),
    ({"server.optimizer": "momentum", "server.learning-rate": 0.5, "server.momentum": 0.5}, {}),
    ({"max-examples-per-client": 9, "server.optimizer": "adam"}, {}),
    ({"max-examples-per-client": 9, "server.aggregation": "median", "strategy": "fedtp"}, {}),  # of the hypernetwork
    ({"torchvision.norm": "group"}, {"network": "torchvision:resnet18"}),
    (
        {"table.decimal": ",", "table.missing": "x", "table.categories": "found", "table.schema": "s.toml"},
        {"network": "mlp", "shape": (2, 3)},
    ),
    ({"fedham.peers": 3, "strategy": "fedham", "clip-norm": 3.0}, {}),
    ({**FEDTP, "strategy": "fedtp"}, {}),
    *(({f"{method}.update-momentum": 0.5, "strategy": method}, {}) for method in ("amn", "fedham")),
    ({"fedamp.sigma": 3.0, "fedamp.alpha-decay": 0.5, "fedamp.alpha-every": 3, "strategy": "fedamp"}, {}),
    ({"fedamp.self-weight": 0.3, "fedamp.sharpness": 3.0, "fedamp.variant": "heuristic", "strategy": "fedamp"}, {}),
    ({"fedas.align-rate": 0.5, "fedas.most-share": 0.3, "strategy": "fedas"}, {}),
    ({"fedselect.limit": 0.3, "fedselect.every": 2, "strategy": "fedselect"}, {}),
    ({"knnper.neighbours": 3, "knnper.share": 0.0, "knnper.tune-share": True, "strategy": "knnper"}, {}),
    ({"knnper.scale": 3.0, "knnper.capacity": 9, "strategy": "knnper"}, {}),
    ({"perfedavg.delta": 0.1, "perfedavg.variant": "hf", "strategy": "perfedavg"}, {}),
    ({"pfedgraph.sign": "code", "pfedgraph.reference": "mixture", "strategy": "pfedgraph"}, {}),
    ({"early-stopping.patience": 3, "early-stopping.metric": "loss", "callbacks": "early-stopping"}, {}),
    ({"early-stopping.min-delta": 0.1, "early-stopping.min-rounds": 3, "callbacks": "early-stopping"}, {}),
    ({"tracking.project": "x", "tracking.run-name": "x", "tracking.mlflow-uri": "x", "tracker": "mlflow"}, {}),
    ({"tracking.wandb-mode": "online", "tracking.log-clients": True, "tracker": "tensorboard wandb"}, {}),
    ({"model": "own_objects:Wide", "wide.width": 3}, {"network": "own_objects:Wide"}),
]


@pytest.mark.parametrize(("given", "facts"), READ, ids=lambda value: "-".join(map(str, value)))
def test_what_is_read_is_not_said(
    caplog: pytest.LogCaptureFixture, given: dict[str, Value], facts: dict[str, Any]
) -> None:
    assert said(caplog, given, **facts) == ""


def test_every_reason_is_of_a_setting_and_has_a_case_of_both_kinds() -> None:
    cases = {key for given, _ in CASES for key in given}
    assert REASONS.keys() <= defaults().keys()
    of_other_data = {"client-column", "image-size", "image.channels", "image.unreadable", "samples-per-client",
                     "shift"}  # fmt: skip
    assert REASONS.keys() - cases == of_other_data
    assert REASONS.keys() <= {key for given, _ in READ for key in given}


# ---- the ways to start a run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ('strategy="ditto" ditto.penalty=2.0 alpha=0.1 owner-share=0.5',
         "settings that have no effect: alpha=0.1 (partitioner is pathological), "
         "owner-share=0.5 (partitioner is pathological)"),
        ("fedper.personal-layers=2 momentum=0.5", ""),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("workplace")
def test_the_command_line_says_it(caplog: pytest.LogCaptureFixture, tmp_path: Path, config: str, line: str) -> None:
    file = tmp_path / "base.toml"  # may hold settings of several methods
    file.write_text(
        'num-server-rounds = 1\nsamples-per-client = 40\ndevice = "cpu"\nbeta1 = 0.5\n[pfedla]\nhidden-dim = 3\n'
    )
    options = ["--backend", "in-process", "--num-supernodes", "2"]
    assert run_command([*options, "-c", str(file), "-c", config]) == 0
    assert caplog.messages == ([line] if line else [])


@pytest.mark.usefixtures("workplace")
def test_of_a_file_it_says_what_no_method_decides_about(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "base.toml"
    file.write_text("num-server-rounds = 1\nsamples-per-client = 40\nbeta1 = 0.5\n[early-stopping]\npatience = 3\n")
    options = ["--backend", "in-process", "--num-supernodes", "2", "-c", str(file)]
    assert run_command(options) == 0
    assert caplog.messages == ['settings that have no effect: early-stopping.patience=3 (callbacks is "")']
    caplog.clear()
    assert run_command([*options, "-c", 'callbacks="early-stopping"']) == 0
    assert caplog.messages == []


OTHERS: list[tuple[str, str]] = [
    ("fedham.meta-steps=3", "fedham.meta-steps=3 (strategy is fedper)"),
    ('model="cnn" mlp.width=3 amn.peer-bias=false',
     "amn.peer-bias=false (strategy is fedper), mlp.width=3 (the network is cnn)"),
    ("mlp.width=3", "mlp.width=3 (the network is digits-cnn)"),  # which only the data tell
]  # fmt: skip


@pytest.mark.parametrize(("config", "which"), OTHERS)
@pytest.mark.usefixtures("workplace")
def test_settings_of_another_method_or_network_are_refused_in_a_command_and_a_call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, config: str, which: str
) -> None:
    options = ["--backend", "in-process", "--num-supernodes", "2"]
    assert run_command([*options, "-c", "samples-per-client=40", "-c", config]) == 1
    sentence = (
        f"settings of another method or network than the run's: {which}; wanted without them (a file may hold what "
        "several methods need)"
    )
    assert capsys.readouterr().err == f"error: {sentence}\n"
    with pytest.raises(UserError) as raised:
        simulate(clients=2, samples_per_client=40, verbose=False, **dict(overrides([config])))
    assert str(raised.value) == sentence
    assert not (tmp_path / "results").exists()


def test_without_the_data_only_what_they_cannot_change_is_refused() -> None:
    check_sections(["mlp.width"], parse({"mlp.width": 3}))
    check_sections(["torchvision.norm"], parse({"model": "torchvision:resnet18", "torchvision.norm": "group"}))
    with pytest.raises(UserError, match=r"mlp.width=3 \(the network is torchvision:resnet18\)"):
        check_sections(["mlp.width"], parse({"model": "torchvision:resnet18", "mlp.width": 3}))


@pytest.mark.usefixtures("workplace")
def test_a_program_says_it_also_of_data_that_are_not_dealt(caplog: pytest.LogCaptureFixture) -> None:
    short: dict[str, Any] = {"num_server_rounds": 1, "clients": 2, "verbose": False, "device": "cpu"}
    simulate("fedavg", dataset=slopes, model=linear, partitioner="iid", **short)
    own = "each client has data of its own, which are not dealt"
    assert caplog.messages == [f'settings that have no effect: partitioner="iid" ({own})']


def test_under_flwr_run_what_is_not_the_default_was_given(
    caplog: pytest.LogCaptureFixture, settings: Callable[..., dict[str, Value]], no_pictures: None
) -> None:
    given = settings(strategy="fedavg", num_server_rounds=1, beta1=0.9, beta2=0.5, samples_per_client=40)
    config = {**defaults(), **given}
    assert changed(config) == {key for key, value in given.items() if defaults()[key] != value}
    grid = InProcessGrid(make_client_app(given), 2)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)
    with one_thread():
        make_server_app()(grid, context)
    assert caplog.messages == ["settings that have no effect: beta2=0.5 (optimizer is sgd)"]
