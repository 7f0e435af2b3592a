"""Real federations for tests: hospitals on SuperNodes of their own, and what is done to their processes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHARED_DATA
from safetensors.torch import load_file

from fedham_flwr import models
from fedham_flwr.core.records import Row
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.data.clients import open_node
from fedham_flwr.reporting.run_directory import read_rows, to_rows
from fedham_flwr.settings import Value, parse
from fedham_flwr.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "deploy"))

import sites  # noqa: E402
from federation import Federation, Outcome, processes  # noqa: E402

HEART = SHARED_DATA / "heart_disease"
ATTRIBUTES = "age sex cp trestbps chol fbs restecg thalach exang oldpeak slope ca thal"
TABLE: dict[str, Value] = {"feature-column": ATTRIBUTES, "label-column": "label", "model": "mlp", "device": "cpu"}
SITES = ("cleveland", "hungarian", "va")
HEAD = ("head.weight", "head.bias")
PATIENCE = 400.0
"""Seconds to wait for anything, on a machine that is busy with other things."""
Params = dict[str, torch.Tensor]


Tell = Callable[[Path, dict[str, Path]], Any]
_told: list[Tell] = []
_begun: dict[str, Future[Any]] = {}


def story(tell: Tell) -> Any:
    """Make a test file's fixture `story` of a function that lets a federation go through something.

    Those of all files that are tested go on at a time, since most of what they take is waiting.

    Args:
        tell: is given a folder, and the data folder of each hospital.
    """
    _told.append(tell)

    @pytest.fixture(scope="module")
    def begun(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
        if tell.__module__ not in _begun:
            tested = {item.module.__name__ for item in request.session.items if isinstance(item, pytest.Function)}
            if "PYTEST_XDIST_WORKER" in os.environ:  # which knows all tests, and runs some of them
                tested = {tell.__module__}
            _begin([other for other in _told if other.__module__ in tested], tmp_path_factory.mktemp("real"))
        return _begun[tell.__module__].result()

    return begun


def _begin(stories: Sequence[Tell], folder: Path) -> None:
    data = hospitals(folder / "sites")
    pool = ThreadPoolExecutor(len(stories))
    for tell in stories:
        _begun[tell.__module__] = pool.submit(tell, folder / tell.__module__, data)
    pool.shutdown(wait=False)


def hospitals(folder: Path) -> dict[str, Path]:
    """Data folders of the four hospitals of heart_disease; without what that takes, the test is skipped."""
    if not HEART.is_dir():
        pytest.skip(f"{HEART} is not there")
    for program in ("openssl", "ssh-keygen"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    return sites.make(folder, HEART, "center", ATTRIBUTES.split()).folders


def federation(folder: Path, **given: Value) -> Federation:
    """A federation whose runs have three rounds, unless something else is said."""
    few: dict[str, Value] = {"num-server-rounds": 3, "round-timeout": PATIENCE, "checkpoint-every": 1}
    return Federation(folder, ROOT, TABLE | few | {key.replace("_", "-"): value for key, value in given.items()})


# ---- processes -------------------------------------------------------------------------------------------------------


def wait_for(there: Callable[[], bool], what: str) -> None:
    """Look again and again."""
    end = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:g} seconds"
        time.sleep(0.05)


def wait_for_message(of: Federation, site: str, number: int) -> None:
    """Wait until the last message that a site has got is of this round: its process has yet to import everything."""

    def there() -> bool:
        return re.findall(r"ROUND (\d+)\]", of.log(f"node-{site}").read_text())[-1:] == [str(number)]

    wait_for(there, f"round {number} at {site}")


def wait_until_idle(of: Federation, site: str) -> None:
    """Wait until a site has worked off the last message, and sent the reply."""

    def there() -> bool:
        text = of.log(f"node-{site}").read_text()
        return "Sent successfully" in text[text.rfind("Receiving: ") :]

    wait_for(there, f"{site} has replied")


@contextlib.contextmanager
def paused(of: Federation, site: str, number: int) -> Iterator[None]:
    """Let the work of a site on its message of a round stand still; its SuperNode goes on, as that of a slow one."""
    wait_for_message(of, site, number)
    for _ in range(2):  # what had been started before that could be stopped which starts it
        _signal_work(of, site, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal_work(of, site, signal.SIGCONT)


def _signal_work(of: Federation, site: str, number: signal.Signals) -> None:
    for process, command in processes(of.folder, f"node-{site}").items():
        with contextlib.suppress(ProcessLookupError):
            if "flower-supernode" not in command:
                os.kill(process, number)


# ---- what is left ----------------------------------------------------------------------------------------------------


def state_file(of: Federation, site: str, strategy: str) -> Path:
    """The file with what a site keeps of the one training by a method; a second training would be an error."""
    (folder,) = (of.folder / "nodes" / site / "state").glob(f"{strategy}-*")
    return folder / f"{site}.safetensors"


def model_file(of: Federation, site: str, strategy: str) -> Path:
    """The model that a training has left at a site."""
    file = state_file(of, site, strategy)
    return file.with_name("model") / file.name


def base(outcome: Outcome, number: int) -> Params:
    """The server's tensors after a round, of one of the last two checkpoints."""
    assert outcome.path is not None
    return load_file(outcome.path / "checkpoints" / f"round-{number:05d}" / "server.safetensors")


def failures(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, str]]:
    """Round, stage and client of every failure."""
    return [(f["round"], f["stage"], f["client"]) for record in records for f in record["failures"]]


def rows(outcome: Outcome, number: int, site: str, **wanted: str) -> list[Row]:
    """What was measured at a site on its test split in a round."""
    assert outcome.path is not None
    found = [row for row in to_rows(read_rows(outcome.path)) if row[:3] == (number, site, "test")]
    return [row for row in found if all(getattr(row, name) == value for name, value in wanted.items())]


def data_of(of: Federation, path: Path) -> ClientData:
    """The data of a site as its own process sees them."""
    return open_node(parse({**TABLE, "cache-dir": str(of.folder / "cache")}).data(), str(path))


def trainer_of(data: ClientData) -> Trainer:
    """The network of all runs, with its first tensors."""
    settings = parse(TABLE)
    model = models.build(settings.model, data.shape, len(data.classes), settings.seed, settings.networks())
    return Trainer(model, torch.device("cpu"), "fp32")


def loss(data: ClientData, *parts: Mapping[str, torch.Tensor]) -> float:
    """The loss on the test split of a model that is put together from parts."""
    trainer = trainer_of(data)
    trainer.load({name: tensor for part in parts for name, tensor in part.items()})
    return trainer.evaluate(data, "test").loss
