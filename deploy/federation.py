"""A whole federation on this machine: a SuperLink and SuperNodes on loopback, with TLS and node authentication.

`try_out.py` and the tests start and stop real processes with it; `marked.py` finds them again.

    with Federation(folder, app) as federation:
        federation.start_superlink()
        federation.start_node("north", Path("sites/north"))
        federation.start_node("south", Path("sites/south"))
        outcome = federation.run('strategy="fedper" num-server-rounds=2')

The folder gets `certificates/`, `keys/`, `superlink/` (its database), `nodes/<site>/state` (what a site keeps),
`logs/`, `results/` and `operator/config.toml` (for `flwr`, as FLWR_HOME).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for those who import it by its path

from flower_run import Outcome, Run, tail, wait_until
from marked import FederationError, processes
from parts import HOST, Parts, Value, call, free_port, listens, toml_line

__all__ = ["Federation", "FederationError", "Outcome", "Run", "processes", "tail"]

HERE = Path(__file__).resolve().parent
CONNECTION = "loopback"
PAUSE = 3.0
"""Seconds before a SuperNode that was refused is started again."""
REFUSED = b"Failed to activate SuperNode"


@dataclass
class Federation(Parts):
    """A SuperLink and SuperNodes on loopback.

    Attributes:
        folder: for all its files; made, with mode 0700, where it is not there.
        app: folder of the Flower application.
        defaults: settings of every run, which a run's own precede.
        port: of the SuperLink; 0: a free one, from its first start on.
    """

    app: Path = HERE.parent
    defaults: Mapping[str, Value] = field(default_factory=dict)
    port: int = 0
    _nodes: dict[str, list[str]] = field(default_factory=dict, init=False)
    _shown: dict[str, int] = field(default_factory=dict, init=False)

    def __enter__(self) -> Federation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---- the SuperLink -----------------------------------------------------------------------------------------------

    def start_superlink(self, timeout: float = 90.0) -> None:
        """Start the SuperLink, with certificates that are made if there are none, and wait until it serves.

        A SuperLink that is started again serves on the same port and knows the nodes that were registered.

        Raises:
            FederationError: it does not come up.
        """
        folder = self.folder / "certificates"
        call([str(HERE / "certificates.sh"), str(folder), "localhost"])
        self.port = self.port or free_port()
        self._write_connection()
        command = ["flower-superlink", "--host", HOST, "--port", str(self.port), "--isolation", "subprocess"]
        command += ["--ssl-ca-certfile", str(folder / "ca.crt"), "--ssl-certfile", str(folder / "superlink.crt")]
        command += ["--ssl-keyfile", str(folder / "superlink.key"), "--enable-supernode-auth"]
        command += ["--database", str(self.folder / "superlink" / "state.db")]
        command += ["--disable-runtime-dependency-installation"]
        process = self.start("superlink", command, self.folder / "superlink")
        wait_until(lambda: listens(self.port), timeout, "the SuperLink", self.log("superlink"), process)

    def stop_superlink(self) -> None:
        """Stop the SuperLink and what it has started, as an operator does."""
        self.stop("superlink")

    def kill_superlink(self) -> None:
        """SIGKILL for the SuperLink and what it has started."""
        self.kill("superlink")

    def _write_connection(self) -> None:
        certificate = self.folder / "certificates" / "ca.crt"
        text = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        text += f"address = {json.dumps(f'{HOST}:{self.port}')}\nroot-certificates = {json.dumps(str(certificate))}\n"
        (self.folder / "operator" / "config.toml").write_text(text)

    # ---- SuperNodes --------------------------------------------------------------------------------------------------

    def start_node(
        self,
        site: str,
        data: Path,
        *,
        client: str = "",
        state: Path | None = None,
        register: bool = True,
        options: Sequence[str] | None = None,
        wait: bool = True,
    ) -> None:
        """Start a SuperNode, with a key that is made if there is none, and wait until the SuperLink has taken it in.

        Args:
            site: name of the node: of its key, its folder and its log.
            data: its `data-path`.
            client: its `client-id`; empty: the name of the site.
            state: its `state-dir`; None: `nodes/<site>/state`.
            register: whether its key is registered, unless that has been done.
            options: in place of `--root-certificates FILE --auth-supernode-private-key FILE`.
            wait: whether to wait; a node that is to be refused never gets through.

        Raises:
            FederationError: it does not come up.
        """
        keys, state = self.folder / "keys", state or self.folder / "nodes" / site / "state"
        call([str(HERE / "node_keys.sh"), str(keys), site])
        if register and site not in self.registered():
            self.register(site)
        if options is None:
            options = ["--root-certificates", str(self.folder / "certificates" / "ca.crt")]
            options += ["--auth-supernode-private-key", str(keys / site)]
        config = {"client-id": client or site, "data-path": os.path.abspath(data), "state-dir": str(state)}
        command = ["flower-supernode", "--superlink", f"{HOST}:{self.port}", *options, "--port", str(free_port())]
        self._nodes[site] = [*command, "--isolation", "subprocess", "--node-config", toml_line(config)]
        self.restart_node(site, wait)

    def start_nodes(self, sites: Mapping[str, Path]) -> None:
        """Start several SuperNodes at a time, and wait for all of them.

        Args:
            sites: name and `data-path` of each.

        Raises:
            FederationError: one does not come up.
        """
        for site, data in sites.items():
            self.start_node(site, data, wait=False)
        for site in sites:
            self.wait_for_node(site)

    def restart_node(self, site: str, wait: bool = True) -> None:
        """Start a SuperNode again, with the key, the state and the data that it had.

        Args:
            site: name of the node.
            wait: whether to wait until the SuperLink has taken it in. For a node that was killed that takes up to 60
                seconds, until the SuperLink has missed two of its heartbeats: before, it refuses a second one.

        Raises:
            FederationError: it does not come up.
        """
        folder, log = self.folder / "nodes" / site, self.log(f"node-{site}")
        folder.mkdir(mode=0o700, exist_ok=True)
        self._shown[site] = log.stat().st_size if log.exists() else 0
        self.start(f"node-{site}", self._nodes[site], folder)
        if wait:
            self.wait_for_node(site)

    def wait_for_node(self, site: str, timeout: float = 120.0) -> None:
        """Wait until the SuperLink has taken in a SuperNode; one that it refuses is started again, as systemd does.

        Raises:
            FederationError: it does not come up.
        """
        log, end = self.log(f"node-{site}"), time.monotonic() + timeout

        def shown() -> bytes:
            return log.read_bytes()[self._shown[site] :]

        while True:
            process = self._processes[f"node-{site}"]
            try:
                left = end - time.monotonic()
                return wait_until(lambda: b"SuperNode ID: " in shown(), left, f"the SuperNode of {site}", log, process)
            except FederationError:
                if process.poll() is None or REFUSED not in shown() or time.monotonic() > end:
                    raise
            self.stop_node(site)
            time.sleep(PAUSE)
            self.restart_node(site, wait=False)

    def stop_node(self, site: str) -> None:
        """Stop a SuperNode and what it has started, as an operator does."""
        self.stop(f"node-{site}")

    def kill_node(self, site: str) -> None:
        """SIGKILL for a SuperNode and what it has started, in whatever they are at."""
        self.kill(f"node-{site}")

    def register(self, site: str) -> None:
        """Tell the SuperLink the public key of a site.

        Raises:
            FederationError: it does not take it.
        """
        said = self.flwr("supernode", "register", str(self.folder / "keys" / f"{site}.pub"), CONNECTION, "--name", site)
        found = re.search(r"SuperNode (\d+) registered", said)
        if found is None:
            raise FederationError(f"flwr supernode register did not say the id of the node\n{said}")
        self._write_registered(self.registered() | {site: found[1]})

    def unregister(self, site: str) -> None:
        """Let the SuperLink forget the public key of a site.

        Raises:
            FederationError: it does not know it.
        """
        known = self.registered()
        self.flwr("supernode", "unregister", known.pop(site), CONNECTION)
        self._write_registered(known)

    def registered(self) -> dict[str, str]:
        """Node ids of the sites that have been registered; `flwr supernode list` does not show the names."""
        file = self.folder / "superlink" / "registered.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def _write_registered(self, known: Mapping[str, str]) -> None:
        (self.folder / "superlink" / "registered.json").write_text(json.dumps(known, indent=1))

    # ---- runs --------------------------------------------------------------------------------------------------------

    def run(self, config: str | Path = "", timeout: float = 600.0) -> Outcome:
        """Run the application and wait for its end.

        Args:
            config: of `-c`: settings, `key=value` with blanks between, added to `defaults`; or a TOML file, which
                stands alone.
            timeout: seconds.

        Raises:
            FederationError: it did not end in time.
        """
        return self.start_run(config).wait(timeout)

    def start_run(self, config: str | Path = "") -> Run:
        """Run the application, and do not wait.

        Args:
            config: as of `run`.
        """
        part = self._new_part()
        command = ["flwr", "run", str(self.app), CONNECTION, "--stream", "-c", self.settings(config)]
        return Run(self.start(part, command, self.folder), self.log(part), self.run_directories, self.status)

    def settings(self, config: str | Path) -> str:
        """What `-c` is given for a run: settings with the defaults for those that are not named, or a file."""
        if str(config).endswith(".toml"):
            return str(config)
        defaults: dict[str, Value] = {"min-clients": max(1, len(self._nodes))}
        defaults |= {"results-dir": str(self.folder / "results"), "cache-dir": str(self.folder / "cache")}
        defaults |= self.defaults
        given = set(re.findall(r"(?:^|\s)([\w.-]+)=", str(config)))
        return f"{toml_line({key: value for key, value in defaults.items() if key not in given})} {config}".strip()

    def _new_part(self) -> str:
        taken = {log.stem for log in (self.folder / "logs").iterdir()}
        return next(name for name in (f"run-{number}" for number in itertools.count(1)) if name not in taken)

    def run_directories(self) -> set[Path]:
        """The directories of all runs with the default `results-dir`."""
        return {path for path in (self.folder / "results").glob("*/*") if path.is_dir()}

    def status(self, run: str) -> str:
        """What Flower says of a run, `finished:completed` of one that ended well.

        Args:
            run: its id.
        """
        listed = json.loads(self.flwr("list", CONNECTION, "--run-id", run, "--format", "json"))
        return str(listed["runs"][0]["status"])

    def flwr(self, *arguments: str) -> str:
        """What a command of `flwr` prints.

        Raises:
            FederationError: it failed.
        """
        return call(["flwr", *arguments], self.environment("operator"))
