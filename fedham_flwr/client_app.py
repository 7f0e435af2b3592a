"""Message -> NumPyClient -> Message: the app that runs on every client."""

from __future__ import annotations

import dataclasses
import gc
import logging
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedham_flwr import models, registry
from fedham_flwr.core.devices import warn_of_precision
from fedham_flwr.core.errors import UnwritableError, UserError, described, line_of, out_of_space
from fedham_flwr.core.interrupts import raise_if_seen
from fedham_flwr.core.methods import Method
from fedham_flwr.core.records import MEMBER
from fedham_flwr.core.threads import use_assigned_threads
from fedham_flwr.data.cache_files import start_of
from fedham_flwr.data.client_data import ClientData
from fedham_flwr.federation import wire
from fedham_flwr.federation.categories import words_profile
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.cross_client import CrossClient
from fedham_flwr.federation.direct import Direct, Reply
from fedham_flwr.federation.job import Job
from fedham_flwr.federation.messages import Metrics, Profile
from fedham_flwr.federation.node import client_of, network_of, open_data, place_of
from fedham_flwr.federation.numpy_client import FlowerClient
from fedham_flwr.federation.privacy_mod import private
from fedham_flwr.federation.queries import read_told
from fedham_flwr.federation.stages import ACROSS, ADAPT, STAGES, Stage
from fedham_flwr.federation.trainers import trainer_of
from fedham_flwr.registry import half
from fedham_flwr.run_settings import Settings
from fedham_flwr.sections import without_callbacks
from fedham_flwr.settings import Value, parse
from fedham_flwr.state.held import HeldRecord
from fedham_flwr.state.store import ClientState, StateLostError
from fedham_flwr.training.guard import method_view
from fedham_flwr.training.trainer import Trainer

log = logging.getLogger("fedham_flwr")

if TYPE_CHECKING:
    from fedham_flwr.training.engine.cohort import CohortTrainer
    from fedham_flwr.training.engine.engine import Engine

Handler = Callable[[Message, Context], Message]
Work = Callable[[Message, Context, Settings], RecordDict]
"""What becomes of a message: the content of the reply."""


def make_client_app(given: Mapping[str, Value] | None = None) -> ClientApp:
    """The app, with settings given here or, by default, taken from the run's config.

    Args:
        given: settings by key, as in pyproject.toml.
    """
    parsed: list[Settings] = []  # given here, they are the same for every message

    def settings_of(context: Context) -> Settings:
        if given is None:
            return parse(without_callbacks(context.run_config))
        if not parsed:
            parsed.append(parse(without_callbacks(given)))
        return parsed[0]

    app = ClientApp(mods=[private(settings_of)])

    def answer(message: Message, context: Context, work: Work) -> Message:
        try:
            if not isinstance(context.state, HeldRecord):  # else whoever runs many here has seen to it
                use_assigned_threads()
            content = work(message, context, settings_of(context))
        except Exception as error:
            raise_if_seen()  # Ctrl-C in an import may come out of it as any error
            content = _failure(message, context, error)
        return Message(content, reply_to=message)

    app.query()(partial(answer, work=_profile))
    for stage in (*STAGES, *ACROSS):
        _registrar(app, stage)(partial(answer, work=partial(_work, stage)))
    return app


def _failure(message: Message, context: Context, error: Exception) -> RecordDict:
    """What a client says of an error: a sentence; what is neither a user's mistake nor a full disk is logged too."""
    simulated = "partition-id" in context.node_config
    known = error if isinstance(error, UserError) else out_of_space(error)
    if known is None:
        text = described(error)  # which of a user's own code says the line; of ours the stack does
        log.error("%s failed: %s", message.metadata.message_type, text, exc_info=None if line_of(error) else error)
        return wire.write_failure(text, simulated)
    ends = simulated and isinstance(known, UnwritableError)
    return wire.write_failure(str(known), simulated, isinstance(known, StateLostError), ends)


def _registrar(app: ClientApp, stage: Stage) -> Callable[[Handler], Handler]:
    """Flower's decorator for the messages of a stage: `app.train()`, `app.query("before")`, ..."""
    category, _, action = stage.message.partition(".")
    decorator: Callable[[Handler], Handler] = getattr(app, category)(*([action] if action else []))
    return decorator


def _profile(message: Message, context: Context, settings: Settings) -> RecordDict:
    with start_of(str(context.run_id)):
        if words := words_profile(message.content, context, settings):
            return wire.write_profile(words)
        data = open_data(context, settings, read_told(message.content))
    if "partition-id" not in context.node_config:  # a simulation has said so before its first round
        warn_of_precision(settings.device, settings.precision)
    client = client_of(context.node_config, data)
    network = network_of(context.node_config, settings, client)
    ours = network == settings.model and not settings.client_models
    return wire.write_profile(
        Profile(
            client=client,
            partitions=int(context.node_config.get("num-partitions", 0)),
            shape=data.shape,
            classes=data.outputs,
            counts=data.counts(),
            labels=tuple(data.label_counts("train")),
            name=data.name,
            meanings=data.meanings,
            target=data.target,
            data=data.pin,
            network="" if ours else models.resolve(network, data.shape),
        )
    )


def _work(stage: Stage, message: Message, context: Context, settings: Settings) -> RecordDict:
    """What every message but the query of the roster comes to: the client half does its stage's work, and replies."""
    client, data, seconds = _open_client(stage, message, context, settings)
    if not isinstance(message.content, Direct):  # else it is the server's own, and has been looked at
        client.job.trainer.manifest.check(client.job.download.params, client.received_names)
    if stage in ACROSS:
        crossed = CrossClient(client, data, context.node_config).work(stage)
        return wire.write_upload(crossed, isinstance(message.content, Direct))
    worker = FlowerClient(client, data)
    params = worker.work(stage)
    metrics: Metrics = {**worker.metrics, "seconds/open": seconds}
    age = client.age if stage.population == MEMBER and stage is not ADAPT else 0
    reply = Reply(client.job.client, params, client.examples, metrics, client.extras, client.kept.restarted, age)
    return wire.write_upload(reply, isinstance(message.content, Direct))


def _open_client(
    stage: Stage, message: Message, context: Context, settings: Settings
) -> tuple[RoundClient, ClientData, float]:
    """The client half that a message is for, the client's data, and the seconds it took to put both together."""
    began = time.perf_counter()
    download = wire.read_download(message.content)
    data = open_data(context, settings, download.data, download.training)
    client, place = client_of(context.node_config, data), place_of(context.node_config, download)
    if data.shape != download.shape or data.outputs > download.classes:
        raise UserError(
            f"client {client} has samples of shape {data.shape} and {data.outputs} "
            f"outputs, and this run is for {download.shape} and {download.classes}: give its SuperNode data of the "
            "others' kind"
        )
    data = data.with_outputs(download.classes)
    network = network_of(context.node_config, settings, client)
    parts = _parts(settings, network, (context.run_id, download.shape, download.classes))
    state = ClientState(
        context.state,
        client,
        parts.fingerprint,
        place.state,
        method=settings.strategy,
        training=download.training,
        durable=place.own,
        repeated=0 if place.own else download.round,
    )
    download = dataclasses.replace(download, export=str(place.export or ""))
    cohort = sys.modules.get("fedham_flwr.training.engine.cohort")  # not imported where nobody runs in one
    trainer: Trainer | CohortTrainer = parts.trainer
    if cohort and cohort.in_cohort():
        trainer = cohort.CohortTrainer(parts.engine())
        engines = context.state.shared.setdefault("engines", {}) if isinstance(context.state, HeldRecord) else {}
        if parts.settings.model not in engines:
            parts.engine().forget()  # what it did in another run of this process
            engines[parts.settings.model] = parts.engine()
    card = place.own or int(context.node_config.get("num-partitions", 0)) <= settings.model_cards
    seen = method_view(data, settings.strategy)
    job = Job(client, parts.settings, parts.method, seen, trainer, state, download, stage, card)
    return parts.half(job), data, time.perf_counter() - began


class _Parts(NamedTuple):
    """What all messages of a run to clients with the same network have in common."""

    run: Settings
    settings: Settings  # of these clients: their network is the model
    of: tuple[int, tuple[int, ...], int]  # number of the run, shape of a sample, outputs
    method: Method
    half: Callable[[Job], RoundClient]
    trainer: Trainer
    engine: Callable[[], Engine]
    fingerprint: str


_LAST: list[_Parts] = []


def _parts(run: Settings, network: str, of: tuple[int, tuple[int, ...], int]) -> _Parts:
    """Those of a network of a run; kept from message to message, since settings parsed again are the same object."""
    _, shape, classes = of
    if _LAST and (_LAST[0].run is not run or _LAST[0].of != of):
        _LAST.clear()
    if known := [has for has in _LAST if models.resolve(has.settings.model, shape) == models.resolve(network, shape)]:
        return known[0]
    settings = run if network == run.model else run.model_copy(update={"model": network})
    method = registry.method(settings.strategy)
    trainer, engine = trainer_of(settings, shape, classes)
    fingerprint = trainer.manifest.fingerprint()
    _LAST.append(_Parts(run, settings, of, method, half(method.client), trainer, engine, fingerprint))
    return _LAST[-1]


app = make_client_app()
gc.freeze()  # what is imported by now stays: no collection looks at it again, least of all when the process ends
