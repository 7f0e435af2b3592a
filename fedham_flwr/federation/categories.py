"""Categories that the sites of a federation agree upon: the union of the words that each one has in a column.

With `table.categories="shared"`, in the run's settings and in each node's config, and where no schema declares a
column, each node answers the first query with its own words; the server unites them, asks anew, and tells the union to
all with every message. It is kept in the run's directory, so that a run that is continued has the same; a word that is
new then is none of the categories.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from fedham_flwr.core.errors import UserError
from fedham_flwr.data.client_data import SPLITS
from fedham_flwr.data.shared_words import own_words
from fedham_flwr.federation.messages import Profile
from fedham_flwr.federation.node import as_written_there, network_of
from fedham_flwr.federation.queries import read_told
from fedham_flwr.federation.roster import Roster, identify, order
from fedham_flwr.run_settings import Settings

FILE = "categories.json"
"""In the run's directory: column -> its categories."""
_WORDS = '{"words": '


def words_profile(content: RecordDict, context: Context, settings: Settings) -> Profile | None:
    """What a node answers that has words to share, and has not been told the union; None if it has not.

    Args:
        content: of the query.
        context: of the node.
        settings: the run's.

    Raises:
        UserError: its data can't be read, it names no network, or its node config does not allow that words are sent.
    """
    node = context.node_config
    if settings.table.categories != "shared" or "data-path" not in node or read_told(content):
        return None
    if node.get("table.categories") != "shared":  # the run's settings are the server's, and the words the site's
        raise UserError(
            f'the run asks client {identify(node)} for the words of its columns (table.categories="shared"), and its '
            'node config does not allow that: wanted table.categories="shared" in --node-config, or a schema'
        )
    partitions, name = int(node.get("num-partitions", 0)), identify(node)
    network_of(node, settings, name)  # one that names none is left out now, before others are told its words
    words = own_words(as_written_there(settings.data(), node), str(node["data-path"]))
    # What else a profile has is not known before the union is: it is asked for again.
    return Profile(name, partitions, (2, 1), 1, dict.fromkeys(SPLITS, 1), (1,), name, data=json.dumps({"words": words}))


def discovered(grid: Grid, settings: Settings, run: Path) -> tuple[Roster, str]:
    """The clients that are there, and the union of their words, as all are told it; empty without any.

    Args:
        grid: the way to the nodes.
        settings: the run's.
        run: its directory.

    Raises:
        UserError: too few clients came, or they don't agree.
    """
    roster = Roster(recalled(settings, run))
    search(roster, grid, settings)
    return roster, agreed(roster, grid, settings.round_timeout, run)


def search(roster: Roster, grid: Grid, settings: Settings) -> None:
    """Wait until as many clients have answered as the run wants.

    Args:
        roster: gets them.
        grid: the way to the nodes.
        settings: the run's.

    Raises:
        UserError: as for `Roster.discover`.
    """
    roster.discover(grid, settings.min_clients, settings.client_timeout, settings.round_timeout)


def recalled(settings: Settings, run: Path) -> str:
    """The union that an interrupted run had; empty if this one has yet to ask."""
    file = run / FILE
    return file.read_text(encoding="utf-8") if settings.table.categories == "shared" and file.is_file() else ""


def agreed(roster: Roster, grid: Grid, timeout: float, run: Path) -> str:
    """The union, as all clients are told it: asked for, if they have sent words; empty without any.

    Args:
        roster: of the clients; gets their final profiles.
        grid: the way to them.
        timeout: seconds to wait for their answers.
        run: the run's directory, which keeps it.

    Raises:
        UserError: a client doesn't answer the second time, or a column has too many words.
    """
    sent = {client: profile.data for client, profile in roster.profiles.items() if profile.data.startswith(_WORDS)}
    if sent:
        roster.told = json.dumps(united([json.loads(sent[client])["words"] for client in order(sent)]))
        (run / FILE).write_text(roster.told, encoding="utf-8")
        before, roster.nodes = roster.nodes, {}
        roster.refresh(grid, timeout)
        if lost := order(before.keys() - roster.nodes.keys()):
            first = f": {next(iter(roster.failures.values()))}" if roster.failures else ""
            raise UserError(f"client {lost[0]} has sent its categories, and does not answer any more{first}")
    return roster.told


def united(words: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """The union of the words of each column, in the order of the alphabet."""
    columns = sorted({column for each in words for column in each})
    return {column: sorted({word for each in words for word in each.get(column, ())}) for column in columns}
