"""Prove that nothing moved between two checkouts: the same small runs with both, and their results compared bit by bit.

    python benchmarks/same_results.py BEFORE AFTER                     # two folders with a run_simulation.py
    python benchmarks/same_results.py BEFORE --save before.json        # only BEFORE, to be compared with later
    python benchmarks/same_results.py AFTER --against before.json      # only AFTER, with what was saved
    python benchmarks/same_results.py BEFORE AFTER --only 'fedtp*' fedavg-precision=bf16 --jobs 4

Every case is a run of `run_simulation.py`, in a process and a folder of its own. Compared are the digest of the
server's state and all numbers, the tensors of all clients' models, and the bytes that were sent; one failed reply fails
the case. Some cases go on with a run that was cut back to an earlier checkpoint, and must end as the run that was not;
those called `-before` and those that load an exported model take what BEFORE left, which is saved in FILE.runs. Nothing
of a checkout is imported here: only its command line and its files are used, so that its modules may move. The exit
code is 1 if anything differs or failed. With --folder the runs stay there, each with a log.txt.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

CLIENTS = 5
TIMEOUT = 1200
"""Seconds that a run may take."""
WORDS = {
    "base": 'num-server-rounds=3 fraction-train=0.6 evaluate-every=1 device="cpu"',
    "long": "num-server-rounds=4 checkpoint-every=2",
    "dirichlet": 'partitioner="dirichlet" alpha=0.5',
    "novel": "novel-clients=1 novel-turns=2 novel-steps=5",
    "vit": 'model="vit" vit.patch-size=4 vit.width=16 vit.depth=2 vit.heads=2 vit.head-dim=8 vit.hidden-dim=32 '
    "vit.dropout=0.0",
    "text": 'dataset="INPUTS/texts.jsonl" partitioner="natural" client-column="speaker" sequence-length=20 '
    "char-transformer.width=16 char-transformer.depth=1 char-transformer.heads=2 char-transformer.head-dim=8 "
    "char-transformer.hidden-dim=32 char-transformer.dropout=0.0",
    "rows": 'dataset="INPUTS/rows.csv" partitioner="natural" client-column="site" label-column="ill" mlp.width=16 '
    'feature-column="age pressure marker"',
    "images": 'dataset="INPUTS/images"',
    "table": 'partitioner="class-table" class-table="INPUTS/table.toml"',
}
"""What one word stands for among the settings of a case."""
VARIANTS = {
    "local": "dirichlet | text | rows",
    "fedavg": """dirichlet | partitioner=iid | partitioner=noniid-1 classes-per-client=4 | table | images | text | rows
        | partitioner=noniid-2 classes-per-client=3 | partitioner=class-owners owner-share=0.6 | precision=bf16
        | samples-per-client=64 | dirichlet max-examples-per-client=100 | validation-fraction=0.0 seed=3 | augment=true
        | images model=lenet augment=true | text partitioner=iid client-column= char-transformer.dropout=0.1
        | clip-norm=0.1 | weight-decay=0.001 momentum=0.0 | local-epochs=2 batch-size=32""",
    "fedprox": "dirichlet | .mu=1.0",
    "fedper": """dirichlet | .personal-layers=0 | .personal-layers=2 | novel | table | text | rows
        | images vit vit.dropout=0.1 | dp.epsilon=1000.0 dp.clipping-norm=1.0""",
    "pfedla": """dirichlet | .retained-layers=1 | .top-k-peers=2 .self-bias=1.0 | novel | clip-norm=0.1 | rows
        | .normaliser=relu-sum .hypernetwork-momentum=0.5 | images model=lenet-bn .bn-buffers=mix
        | images model=lenet-bn .bn-buffers=local""",
    "amn": """dirichlet | .unit=layer | .meta=aghn | .optimizer=sgd .reference=start
        | .optimizer=normalised .peer-bias=true .prior-penalty=0.1""",
    "fedham": """dirichlet | .transport=peers | .transport=mediated | .transport=mediated .unit=model | .unit=model
        | .peers=2 .exploration=0.5 | .base-objective=own | .meta-data=held-out | .meta-data=fresh | .meta=aghn
        | .optimizer=sgd .reference=start .peer-bias=true | clip-norm=0.1 | images model=lenet-bn
        | precision=bf16 augment=true weight-decay=0.001""",
    "fedtp": """vit | vit dirichlet | vit novel | vit .personal=vanilla | vit .head=fedper | vit .head=fedrod
        | vit .knn=true | vit .rank=0 | vit vit.dropout=0.1 vit.positions=sinusoidal | text""",
    "fedtransfer": """dirichlet | .attention=cbam | .attention=se .graft-after=conv1 | .reading=F2 | .frozen=
        | .attention=adapter .learning-rate=0.01 | .attention=cbam .insertion=plain | novel .attention=cbam
        | images model=transfer-cnn .attention=cbam | rows .frozen=fc1""",
}
"""Method -> its cases other than the one with default settings. A key that begins with a dot is the method's own."""
CONTINUED = ("fedper novel", "pfedla", "fedham", "fedham .transport=mediated", "fedtp vit")
"""Settings of runs that are cut back to the checkpoint in their middle, and continued."""
STARTS = {"fedtransfer-start": "fedavg", "fedtransfer-start-own": "fedper"}
"""Case -> the case whose run its personal stage starts from."""
LOADED = (
    "fedavg", "fedavg-images", "fedavg-images-model=lenet-augment=true", "pfedla-images-model=lenet-bn-bn-buffers=mix",
    "fedtransfer-images-model=transfer-cnn-attention=cbam", "fedtransfer-attention=se-graft-after=conv1",
    "fedtransfer-attention=adapter-learning-rate=0.01", "fedtp-vit", "fedtp-vit-head=fedrod", "fedtp-text",
    "fedper-rows",
)  # fmt: skip
"""Cases whose model of client 0 is loaded again."""

LOAD = """
import hashlib, math, sys
import fedham_flwr, torch
from safetensors import safe_open
load = getattr(fedham_flwr, "load_model", None)
if load is None:
    from fedham_flwr.models import load
with safe_open(sys.argv[1], framework="pt") as file:
    said = file.metadata()
shape = [4, *map(int, said["shape"].split(","))]
inputs = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
if len(shape) == 2:  # a text: places in the vocabulary
    inputs = torch.arange(math.prod(shape)).reshape(shape) % int(said["classes"])
with torch.inference_mode():
    outputs = load(sys.argv[1])(inputs).contiguous()
print(hashlib.sha256(outputs.numpy().tobytes()).hexdigest())
"""
"""Loads a model, by whichever name the checkout has for that, and prints a digest of what it says of a fixed input."""


class Case(NamedTuple):
    """One row of the table.

    Attributes:
        name: of the case.
        settings: the method, then what differs from `WORDS["base"]`, as in `VARIANTS`.
        kind: a run; one that starts from another, or goes on with one that is cut back; or the load of its model.
        source: the case, further up, whose run it takes.
        foreign: whether AFTER takes that of BEFORE.
        like: the case of BEFORE whose result it must have; empty: the same.
    """

    name: str
    settings: str = ""
    kind: Literal["run", "start", "continue", "load"] = "run"
    source: str = ""
    foreign: bool = False
    like: str = ""


class Result(NamedTuple):
    """What a case gave: the run's digest, one of all exported models, the bytes sent; or why it gave nothing."""

    digest: str = ""
    models: str = ""
    bytes: Mapping[str, Any] = {}
    error: str = ""


def cases() -> list[Case]:
    """All cases, each after those whose runs it takes."""
    plain = []
    for method, variants in VARIANTS.items():
        plain += [method] * (method != "fedtp")  # which needs a Transformer
        plain += [f"{method} {' '.join(variant.split())}" for variant in variants.split("|")]
    found = [Case(_name(text), text) for text in plain]
    for text in CONTINUED:
        long, again = _name(f"{text} long"), _name(f"{text} continued")
        found += [Case(long, f"{text} long"), Case(again, text, "continue", long, like=long)]
        found.append(Case(f"{again}-before", text, "continue", long, foreign=True, like=long))
    for name, source in STARTS.items():
        found.append(Case(name, "fedtransfer", "start", source))
        found.append(Case(f"{name}-before", "fedtransfer", "start", source, foreign=True, like=name))
    return found + [Case(f"{source}-loaded", "", "load", source, foreign=True) for source in LOADED]


def _name(text: str) -> str:
    return text.replace(" .", " ").replace(" ", "-")


def chosen(patterns: Sequence[str]) -> list[Case]:
    """The cases of these names, in which * stands for anything, and those that they need; all without a name.

    Raises:
        SystemExit: there is none of that name.
    """
    known = {case.name: case for case in cases()}
    hits = {pattern: fnmatch.filter(known, pattern) for pattern in patterns or ["*"]}
    if absent := [pattern for pattern, names in hits.items() if not names]:
        raise SystemExit(f"there is no case {absent[0]}; the cases are {', '.join(known)}")
    wanted = {name for names in hits.values() for name in names}
    for case in reversed(known.values()):
        if case.name in wanted:
            wanted |= {case.source, case.like} - {""}
    return [case for case in known.values() if case.name in wanted]


def spelled(settings: str, inputs: Path) -> str:
    """A case's settings as `run_simulation.py` takes them with -c; later ones prevail over earlier ones."""
    method, *words = settings.split()
    given: dict[str, str] = {}
    for word in ("base", f"strategy={method}", *words):
        key, equals, value = word.partition("=")
        if equals:
            literal = re.fullmatch(r"\d+(\.\d+)?|true|false", value)
            given[f"{method}{key}" if key.startswith(".") else key] = value if literal else json.dumps(value)
        else:
            given |= re.findall(r'(\S+?)=("[^"]*"|\S+)', WORDS[word])
    return " ".join(f"{key}={value}" for key, value in given.items()).replace("INPUTS", inputs.as_posix())


def write_inputs(folder: Path) -> None:
    """Write texts of six speakers, rows of five sites with gaps, images of four classes, and a table of classes."""
    rng = random.Random(0)
    words = ["federation", "client", "the", "of", "a", "server", "round", "mixes", "sends", "and", "who?", "Nobody."]
    texts = [{"text": " ".join(rng.choice(words) for _ in range(8)), "speaker": f"s{i % 6}"} for i in range(120)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts), encoding="utf-8")
    rows = ["age,pressure,marker,site,ill"]
    for i in range(200):
        ill, site = rng.randrange(2), min(i % 6, CLIENTS - 1)
        pressure = "" if rng.random() < 0.2 else 120 + 20 * ill + rng.randrange(10)
        marker = "" if site == 2 else round(ill + rng.random(), 3)
        rows.append(f"{rng.randrange(20, 90)},{pressure},{marker},site {site},{ill}")
    (folder / "rows.csv").write_text("\n".join([*rows, ""]), encoding="utf-8")
    for i in range(200):
        grey = [rng.randrange(128) + 127 * (pixel // 64 == i % 4) for pixel in range(256)]
        path = folder / "images" / f"class {i % 4}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(grey, dtype=np.uint8).reshape(16, 16)).save(path)
    table = [f"[clients.c{i}]\n{i} = 60\n{i + 1} = {20 + i}\n{i + 5} = 0.3\n" for i in range(CLIENTS)]
    (folder / "table.toml").write_text("".join(table), encoding="utf-8")


@dataclass(frozen=True)
class Checkout:
    """A folder with the project, and where its runs go.

    Attributes:
        path: the folder.
        folder: for its runs, one below it for each case, and for its cache.
        inputs: the folder with the data.
        before: the folder with BEFORE's runs, which is `folder` for BEFORE itself.
    """

    path: Path
    folder: Path
    inputs: Path
    before: Path

    def run_all(self, wanted: Sequence[Case], jobs: int) -> dict[str, Result]:
        """Run cases, some at once, and give their results by name."""
        found: dict[str, Future[Result]] = {}

        def one(case: Case) -> Result:
            if case.source:  # cases begin in their order, so this one waits for one that has begun
                found[case.source].result()
            result = self.run(case)
            print(f"{self.folder.name} {case.name}: {result.error or result.digest[:12]}", file=sys.stderr, flush=True)
            return result

        pool = ThreadPoolExecutor(jobs)
        try:
            for case in wanted:
                found[case.name] = pool.submit(one, case)
            return {name: future.result() for name, future in found.items()}
        finally:
            pool.shutdown(cancel_futures=True)  # after an interrupt no other run begins

    def run(self, case: Case) -> Result:
        """Run one case."""
        own = self.folder / case.name
        own.mkdir(parents=True)
        results, options = own / "results", ["--backend", "in-process"]
        try:
            source = _the_run((self.before if case.foreign else self.folder) / case.source) if case.source else None
            if case.kind == "load":
                printed = self._python(own, ["-c", LOAD, f"{source}/model/0.safetensors"])
                return Result(digest=printed.split()[-1])
            if case.kind == "continue" and source is not None:
                run = shutil.copytree(source, results / source.parent.name / source.name)
                _, newest = sorted((run / "checkpoints").iterdir())
                shutil.rmtree(newest)
                (run / "summary.json").unlink()  # which a run that was interrupted does not have
                options += ["--resume", str(run)]
            else:
                options += ["--resume", str(source)] if source else ["--num-supernodes", str(CLIENTS)]
                options += ["--results-dir", str(results), "-c", spelled(case.settings, self.inputs)]
            self._python(own, [str(self.path / "run_simulation.py"), *options])
            return read(_the_run(own))
        except (OSError, LookupError, ValueError, RuntimeError, subprocess.TimeoutExpired) as error:
            return Result(error=str(error) or type(error).__name__)

    def _python(self, folder: Path, arguments: Sequence[str]) -> str:
        """What Python prints with this checkout, in a process of one thread."""
        own = {"PYTHONPATH": str(self.path), "XDG_CACHE_HOME": str(self.folder / "cache")}
        environment = os.environ | own | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=folder, env=environment, timeout=TIMEOUT
        )
        (folder / "log.txt").write_text(f"{done.args}\n{done.stdout}\n{done.stderr}", encoding="utf-8")
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or ['nothing'])[-1]}")
        return done.stdout


def _the_run(folder: Path) -> Path:
    """The directory of the run of a case."""
    for run in folder.glob("results/*/*"):
        return run
    raise LookupError(f"there is no run of {folder.name}")


def read(run: Path) -> Result:
    """The result of a run.

    Raises:
        ValueError: it left none, or a client failed.
    """
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    if "error" in summary or summary["failures"]:
        raise ValueError(f"{summary['failures']} replies failed; {summary.get('error', 'see rounds.jsonl')}")
    digest, models = summary["digest"], tensors(run / "model")
    if "privacy" in summary:  # the noise comes from the operating system, and only what was spent can be compared
        digest, models = hashlib.sha256(json.dumps(summary["privacy"], sort_keys=True).encode()).hexdigest(), ""
    return Result(digest, models, summary["bytes"])


def tensors(folder: Path) -> str:
    """SHA-256 of the tensors in all safetensors files of a folder, whatever else their headers say."""
    total = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        for name, about in sorted(header.items()):
            first, last = about["data_offsets"]
            total.update(json.dumps([file.name, name, about["dtype"], about["shape"]]).encode())
            total.update(content[start + first : start + last])
    return total.hexdigest()


def save(file: Path, results: Mapping[str, Result], wanted: Sequence[Case], folder: Path) -> None:
    """Write BEFORE's results, and beside them those of its runs that AFTER takes."""
    kept = file.with_name(f"{file.name}.runs")
    shutil.rmtree(kept, ignore_errors=True)
    whole = {case.source for case in wanted if case.foreign and case.kind != "load"}
    for name in whole | {case.source for case in wanted if case.foreign}:
        unused = ("*.png",) if name in whole else ("*.png", "checkpoints", "clients", "server.*", "[1-9].safetensors")
        shutil.copytree(folder / name, kept / name, ignore=shutil.ignore_patterns(*unused))
    content = {name: result._asdict() for name, result in results.items()}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def verdict(before: Result, after: Result) -> str:
    """`equal`, what differs, or what went wrong."""
    if error := before.error or after.error:
        return f"{'BEFORE' if before.error else 'AFTER'} failed: {error}"
    differ = [name for name, old, new in zip(Result._fields, before, after, strict=True) if old != new]
    return f"DIFFERENT: {', '.join(differ)}" if differ else "equal"


def compare(wanted: Sequence[Case], before: Mapping[str, Result], after: Mapping[str, Result]) -> int:
    """Print the table; how many cases are not equal."""
    width = max(len(case.name) for case in wanted)
    print(f"{'case':{width}}  before        after")
    bad = 0
    for case in wanted:
        old, new = before.get(case.like or case.name, Result(error="not saved")), after[case.name]
        said = verdict(old, new)
        bad += said != "equal"
        print(f"{case.name:{width}}  {old.digest[:12]:12}  {new.digest[:12]:12}  {said}")
    print(f"{len(after)} cases, {bad} not equal")
    return bad


def main() -> int:
    """Read the command line, run, compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT", help="BEFORE and AFTER")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases; * stands for anything")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at once (default: 2)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="a new folder in which the runs stay")
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--save", type=Path, metavar="FILE", help="write BEFORE's results; AFTER may then be left out")
    known.add_argument("--against", type=Path, metavar="FILE", help="in place of BEFORE: results that were saved")
    given = parser.parse_args()
    if len(given.checkouts) not in ((1,) if given.against else (1, 2) if given.save else (2,)):
        parser.error("wanted BEFORE AFTER, or AFTER --against FILE, or BEFORE [AFTER] --save FILE")
    if strange := [path for path in given.checkouts if not (path / "run_simulation.py").is_file()]:
        parser.error(f"{strange[0]} has no run_simulation.py")
    paths, wanted = [path.resolve() for path in given.checkouts], chosen(given.only)
    own = [case for case in wanted if case.kind == "load" or not case.foreign]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        (folder / "inputs").mkdir(parents=True)
        write_inputs(folder / "inputs")
        if given.against:
            saved = json.loads(given.against.read_text(encoding="utf-8"))
            before = {name: Result(**result) for name, result in saved.items()}
            kept = given.against.resolve().with_name(f"{given.against.name}.runs")
        else:
            kept = folder / "before"
            before = Checkout(paths.pop(0), kept, folder / "inputs", kept).run_all(own, given.jobs)
        if given.save:
            save(given.save, before, wanted, kept)
        if not paths:
            return int(compare(own, before, before) > 0)
        after = Checkout(paths[0], folder / "after", folder / "inputs", kept).run_all(wanted, given.jobs)
        return int(compare(wanted, before, after) > 0)


if __name__ == "__main__":
    sys.exit(main())
