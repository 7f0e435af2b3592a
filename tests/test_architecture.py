"""The rules of the tree, read from its syntax: imports point down, one word finds a method, and the house numbers."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fedham_flwr import registry
from fedham_flwr.federation import contract
from fedham_flwr.federation.client import RoundClient
from fedham_flwr.federation.rounds import RoundStrategy

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*ROOT.glob("fedham_flwr/**/*.py"), *ROOT.glob("strategies/*.py"), *ROOT.glob("clients/*.py")])
FILES.append(ROOT / "run_simulation.py")
LEVELS = (
    {"fedham_flwr", "core"},
    {"data", "models", "algorithms", "training", "mixing", "generating"},
    {"registry", "run_fields", "run_settings", "sections", "settings", "task", "idle", "reasons"},
    {"federation", "state", "resume", "callbacks"},
    {"reporting", "strategies", "clients"},
    {"predicting", "analysis"},
    {"server_app", "starts", "trials", "networks", "alike", "ends", "client_app", "runners"},
    {"simulation", "cli", "commands", "doctor", "study", "page"},
    {"run_simulation"},
)
"""A folder imports from its own level and from those before it."""
SERVER_SIDE, CLIENT_SIDE = (
    {"strategies", "server_app", "starts", "trials", "networks", "alike", "ends", "reporting", "resume"},
    {"clients", "client_app"},
)
FLOWER = {"federation", "state", "runners", "server_app", "client_app", "cli"}
FLOWER_DATASETS = {"data"}
SYSTEM = {f"np.random.{name}" for name in ("get_state", "seed", "set_state")}
"""How privacy_mod has Flower draw its noise: from the operating system; the global generator is then as it was."""
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(file): ast.parse(file.read_text(), str(file)) for file in FILES}


def unit(module: str) -> str:
    """What of a module's name has a level: `fedham_flwr.models.cnn` -> models, `strategies.fedavg` -> strategies."""
    first, _, rest = module.partition(".")
    return rest.split(".")[0] if first == "fedham_flwr" and rest else first


@cache
def imported(module: str) -> frozenset[str]:
    """Full names of the modules that a module imports, anywhere in it; those of this tree by their file."""
    names: set[str] = set()
    typing = [node for node in TREES[module].body if isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING"]
    passed_over = {id(inner) for node in typing for inner in ast.walk(node)} if module == "fedham_flwr" else set()
    for node in ast.walk(TREES[module]):
        if id(node) in passed_over:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module} has a relative import in line {node.lineno}"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & TREES.keys()
            whole = not inner or any(f"{node.module}.{alias.name}" not in TREES for alias in node.names)
            names |= inner | ({node.module} if whole else set())
    return frozenset(names)


def inside(module: str) -> frozenset[str]:
    return imported(module) & TREES.keys()


def dotted(node: ast.AST) -> str:
    """`torch.random.fork_rng` of the expression that says so, empty for any other."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def functions(node: ast.AST, public: bool = True) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Functions, classes and methods with their names; without those inside of functions, or with `_`, if public."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            if public and child.name.startswith("_") and child.name != "__init__":
                continue
            yield child.name, child
            if isinstance(child, ast.ClassDef) or not public:
                yield from ((f"{child.name}.{name}", inner) for name, inner in functions(child, public))
        elif not isinstance(child, ast.expr):
            yield from functions(child, public)


def test_every_module_has_a_level() -> None:
    assert {unit(module) for module in TREES} == set().union(*LEVELS)


@pytest.mark.parametrize("module", TREES)
def test_imports_point_down(module: str) -> None:
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    up = {other for other in inside(module) if level[unit(other)] > level[unit(module)]}
    assert not up, f"{module} imports {up}, which stand above it"


def test_imports_make_no_circle() -> None:
    # raises CycleError, which names the circle
    order = list(graphlib.TopologicalSorter({module: inside(module) - {module} for module in TREES}).static_order())
    assert set(order) == set(TREES)


def test_the_two_halves_never_import_each_other() -> None:
    for module in TREES:
        others = {unit(other) for other in inside(module)}
        assert not (unit(module) in SERVER_SIDE and others & CLIENT_SIDE), f"{module} imports a client half"
        assert not (unit(module) in CLIENT_SIDE and others & SERVER_SIDE), f"{module} imports a server half"


@pytest.mark.parametrize("module", TREES)
def test_flower_is_imported_at_the_edges_only(module: str) -> None:
    roots = {name.partition(".")[0] for name in imported(module)}
    assert "flwr" not in roots or unit(module) in FLOWER
    assert "flwr_datasets" not in roots or unit(module) in FLOWER_DATASETS


@pytest.mark.parametrize("method", registry.METHODS)
def test_a_method_has_its_four_files_and_three_are_read_in_one_sitting(method: str) -> None:
    parts = [ROOT / folder / f"{method}.py" for folder in ("fedham_flwr/algorithms", "strategies", "clients")]
    assert [str(part) for part in parts if not part.is_file()] == []
    assert (ROOT / "tests" / f"test_{method}.py").is_file()
    assert sum(len(part.read_text().splitlines()) for part in parts) <= 480


def test_the_registry_names_every_method() -> None:
    algorithms = {file.stem for file in (ROOT / "fedham_flwr" / "algorithms").glob("[a-z]*.py")}
    assert algorithms == set(registry.METHODS)


@pytest.mark.parametrize("method", registry.METHODS)
@pytest.mark.parametrize(("folder", "suffix"), [("strategies", "Strategy"), ("clients", "Client")])
def test_a_class_is_named_after_its_method_and_final(folder: str, suffix: str, method: str) -> None:
    cls = halves(method)[folder]
    assert cls.__module__ == f"{folder}.{method}"
    assert cls.__name__.lower() == f"{method}{suffix}".lower()
    assert cls.__name__.endswith(suffix)
    assert getattr(cls, "__final__", False), f"{cls.__name__} is not @final"


@pytest.mark.parametrize("method", registry.METHODS)
def test_a_half_has_at_most_two_of_our_classes_above_it(method: str) -> None:
    for cls in halves(method).values():
        above = [base for base in cls.__mro__[1:] if base.__module__ in TREES]
        assert len(above) <= 2, above


def halves(method: str) -> dict[str, type]:
    declared = registry.method(method)
    return {"strategies": registry.half(declared.strategy), "clients": registry.half(declared.client)}


QUESTIONS = {
    "of both": {"split"},
    "of the server": {"plan", "merge", "state_dict", "load_state_dict", "add_clients", "describe"},
    "of the client": {"start", "train", "predictor", "answer"},
    "of protocols": {"questions", "answered", "check_extras", "mixing_weights", "adapt", "start_from"},
}
"""All that a method may be asked; what every method must answer is split, plan, merge and the pair of its state."""


def test_a_method_is_asked_these_questions_and_no_others() -> None:
    protocols = [cls for cls in vars(contract).values() if getattr(cls, "_is_protocol", False)]
    asked = {name for cls in protocols if cls.__module__ == contract.__name__ for name in vars(cls) if name[0] != "_"}
    assert asked == QUESTIONS["of protocols"]
    assert set(RoundStrategy.__abstractmethods__) == {"plan", "merge", "state_dict", "load_state_dict"}
    answers: dict[type, set[str]] = {RoundStrategy: set(), RoundClient: set()}
    for method in registry.METHODS:
        for half, base in zip(halves(method).values(), answers, strict=True):
            for cls in half.__mro__[: half.__mro__.index(base)]:
                answers[base] |= {name for name in vars(cls) if name[0] != "_" and name in vars(base)}
    assert answers[RoundStrategy] <= QUESTIONS["of the server"]
    assert answers[RoundClient] <= QUESTIONS["of the client"]
    assert sum(map(len, QUESTIONS.values())) <= 17


@pytest.mark.parametrize("method", ["fedrep", "ditto", "fedala"])
def test_a_method_is_two_halves_of_a_hundred_lines(method: str) -> None:
    halves_of = [ROOT / folder / f"{method}.py" for folder in ("strategies", "clients")]
    assert sum(len(half.read_text().splitlines()) for half in halves_of) <= 100


ROUND = {"pfedla": (9, 1500), "fedham": (13, 2510), "fedavg": (9, 1500)}
"""The most files and lines that one round of a method is read in."""


@pytest.mark.parametrize("method", ROUND)
def test_one_round_is_read_in_a_few_files(method: str) -> None:
    """All that the two halves import of ours, without files that know no method: trees, messages, training, data."""
    found, todo = set(), [f"strategies.{method}", f"clients.{method}", f"fedham_flwr.algorithms.{method}"]
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += inside(module)
    knowing = {module for module in found if knows_methods(module)}
    lines = sum(len((ROOT / file_of(module)).read_text().splitlines()) for module in knowing)
    files, most = ROUND[method]
    assert len(knowing) <= files, sorted(knowing)
    assert lines <= most, f"{lines} lines in {sorted(knowing)}"


def knows_methods(module: str) -> bool:
    """Whether a file is of a method, of what methods own, or imports the contract of methods."""
    if unit(module) in ("strategies", "clients", "algorithms", "mixing", "fedtp"):
        return not module.endswith("__init__") and bool(TREES[module].body[1:])
    return module == contract.__name__ or contract.__name__ in inside(module)


def file_of(module: str) -> Path:
    return next(file for file in FILES if module_name(file) == module)


def source(cls: type) -> str:
    """The text of a class's file and of those of its bases in this tree."""
    return "".join(inspect.getsource(sys.modules[c.__module__]) for c in cls.__mro__ if c.__module__ in TREES)


@pytest.mark.parametrize("method", registry.METHODS)
def test_the_identity_card_and_the_numbered_round_are_there_and_tagged(method: str) -> None:
    algorithm = importlib.import_module(f"fedham_flwr.algorithms.{method}")
    card, _, rounds = (algorithm.__doc__ or "").partition("\nThe round\n")
    assert "\nIdentity card\n" in card
    for entry in ("shared", "personal", "lives", "down, up", "cost"):
        assert re.search(rf"^    {entry}  +\S", card, re.MULTILINE), f"the card does not say: {entry}"
    steps = re.findall(r"^    R(\d+)  (server|client): ", rounds, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    assert steps
    sides = {"server": source(halves(method)["strategies"]), "client": source(halves(method)["clients"])}
    assert [f"R{n} {side}" for n, side in steps if not re.search(rf"\bR{n}\b", sides[side])] == []
    for folder in ("strategies", "clients"):
        tags = set(re.findall(r"\bR(\d+)\b", (ROOT / folder / f"{method}.py").read_text()))
        assert tags, f"{folder}/{method}.py says of no line which step it is"
        assert tags <= {number for number, _ in steps}
    for path in re.findall(r"\b(?:strategies|clients)/\w+\.py", rounds):
        assert (ROOT / path).is_file(), path


def length(file: Path) -> int:
    return len(file.read_text().splitlines())


def test_no_file_has_more_than_250_lines() -> None:
    lengths = {file.relative_to(ROOT).as_posix(): length(file) for file in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 250} == {}


def test_no_file_of_tests_or_benchmarks_has_more_than_400_lines() -> None:
    files = [*ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py")]
    assert {str(file.relative_to(ROOT)): length(file) for file in files if length(file) > 400} == {}


@pytest.mark.parametrize("module", TREES)
def test_no_function_body_is_longer_than_50_lines(module: str) -> None:
    for name, node in functions(TREES[module], public=False):
        if not isinstance(node, ast.ClassDef):
            body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1
            assert length <= 50, f"the body of {module}.{name} has {length} lines"


@pytest.mark.parametrize("module", TREES)
def test_everything_public_is_documented_and_typed(module: str) -> None:
    assert ast.get_docstring(TREES[module]), f"{module} has no docstring"
    for name, node in functions(TREES[module]):
        assert name.endswith("__init__") or ast.get_docstring(node), f"{module}.{name} has no docstring"
        if isinstance(node, ast.ClassDef):
            continue
        given = node.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        bare = [a.arg for a in arguments if a and a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{module}.{name} has arguments without a type: {bare}"
        assert node.returns is not None, f"{module}.{name} does not say what it returns"


@pytest.mark.parametrize("module", TREES)
def test_nothing_forbidden_is_done(module: str) -> None:
    # torch.optim's classes import torch's compiler, which takes a client process seconds.
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "random", "torch.optim"}
    assert not {name for name in imported(module) if name in forbidden}
    forked = {id(inner) for node in ast.walk(TREES[module]) if forks(node) for inner in ast.walk(node)}
    system = module.endswith("privacy_mod")
    for node in ast.walk(TREES[module]):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{module}: bare except"
        assert not dotted(node).startswith(("torch.load", "torch.save", "torch.optim.")), f"{module}: {dotted(node)}"
        if isinstance(node, ast.Call):
            fault = "" if system and dotted(node.func) in SYSTEM else forbidden_call(node, id(node) in forked)
            assert not fault, f"{module}, line {node.lineno}: {fault}"


def forks(node: ast.AST) -> bool:
    return isinstance(node, ast.With) and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)


def forbidden_call(call: ast.Call, seeding_allowed: bool) -> str:
    """Why a call is not allowed; empty for one that is."""
    name, keywords = dotted(call.func), {keyword.arg for keyword in call.keywords}
    if name in ("print", "eval", "exec"):
        return name
    if name.startswith(("np.random.", "numpy.random.")) and not name.endswith(".default_rng"):
        return f"{name} draws from the global generator"
    if name in ("torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all"):
        return "" if seeding_allowed else f"{name} outside of fork_rng"
    if name.startswith("torch.") and name.rpartition(".")[2] in DRAWS and "generator" not in keywords:
        return f"{name} without a generator"
    if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in call.keywords):
        return "allow_pickle"
    return ""
