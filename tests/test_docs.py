"""The documentation: its length, its links, what is generated, its code and its settings."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr import registry, simulate
from fedham_flwr.cli import overrides
from fedham_flwr.commands.settings import remarks
from fedham_flwr.core.imports import section_of
from fedham_flwr.settings import Value, defaults, parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "deploy" / "README.md", *ROOT.glob("examples/*/*.md")]
)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as they are made of their words."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_front_pages_are_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_stands_twice_in_a_row(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [line for line, after in itertools.pairwise(lines) if line == after and len(line) > 20] == []


def test_what_is_generated_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("docs_make", ROOT / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for file, text in module.pages().items():
        assert file.read_text() == text, f"{file.name} is out of date: python docs/make.py"


def test_every_setting_has_a_remark() -> None:
    said = remarks()
    assert [key for key in defaults() if not said.get(key)] == []


@pytest.mark.parametrize("method", registry.BUILT_IN)
def test_a_method_has_its_page(method: str) -> None:
    page = ROOT / "docs" / "methods" / f"{method}.md"
    headings = [
        "identity-card",
        "equations-and-round",
        "settings",
        "results",
        "deviations-and-notes",
        "source-and-symbols",
    ]
    assert [heading for heading in headings if heading not in anchors(page)] == []
    assert f"methods/{method}.md" in (ROOT / "README.md").read_text()
    assert f"[`{method}`]({method}.md)" in (ROOT / "docs" / "methods" / "README.md").read_text()


def blocks(page: Path) -> list[str]:
    """The Python code of a page, in its order: what comes later continues what came before."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


GIVEN = re.compile(r"-c\s+'([^']+=[^']+)'")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if GIVEN.search(page.read_text())], ids=lambda page: str(page.relative_to(ROOT))
)
def test_settings_in_a_page_are_accepted(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = page.parent if (page.parent / "main.py").exists() else tmp_path
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    for text in GIVEN.findall(page.read_text()):
        given = overrides([text])
        if folder == tmp_path:
            given |= own_modules(page, given, tmp_path)
        assert parse(given).strategy == given.get("strategy", "fedper")


def own_modules(page: Path, given: dict[str, Value], folder: Path) -> dict[str, Value]:
    """Write the modules that settings name, with what the page defines; and what the page says of them elsewhere.

    Args:
        page: the page.
        given: the settings.
        folder: for the modules.

    Returns:
        The setting that names the object whose section the settings have, where the page names it in another place.
    """
    definitions = "\n".join(block.partition("\nrun = ")[0] for block in blocks(page))
    named = dict(re.findall(r'\b(task|model|strategy|dataset)="([a-z_]+(?::\w+)?)"', page.read_text()))
    sections = {key.partition(".")[0] for key in given if "." in key}
    more: dict[str, Value] = {
        key: value
        for key, value in named.items()
        if ":" in value and section_of(value) in sections and key not in given
    }
    for key in ("task", "model", "strategy", "dataset", "callbacks"):
        value = str({**more, **given}.get(key, ""))
        if ":" in value or key == "task":
            (folder / f"{value.partition(':')[0] or 'unnamed'}.py").write_text(definitions)
    return more


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("workplace")
def test_the_code_in_a_page_runs(page: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), names)
    assert names["run"].summary["final"], "nothing came of the page's code"
    assert set(names["run"].models)


@pytest.mark.usefixtures("workplace")
def test_the_server_momentum_of_the_page_is_fedavgm_and_can_be_resumed() -> None:
    names: dict[str, Any] = {}
    (block,) = [block for block in blocks(ROOT / "docs" / "extending.md") if "velocity" in block]
    exec(block.partition("\nrun = ")[0], names)
    short: dict[str, Any] = {"clients": 3, "samples_per_client": 40, "verbose": False, "device": "cpu"}

    def run(beta: float, rounds: int = 3, **more: Any) -> Any:
        return simulate(names["FEDAVGM"], fedavgm={"beta": beta}, num_server_rounds=rounds, **short, **more)

    def losses(of: Any) -> Any:
        rows = of.rows
        return rows[rows["metric"] == "loss"]["value"].to_numpy()

    plain = simulate("fedavg", num_server_rounds=3, **short)
    assert losses(run(0.0)) == pytest.approx(losses(plain), rel=1e-3)  # no momentum is FedAvg, to rounding
    whole, begun = run(0.9), run(0.9, 2, checkpoint_every=1)
    # v_1 = m_1 - w_0 and w_1 = w_0 + v_1 = m_1: momentum begins to tell with round 2, whose result round 3 starts from.
    told = abs(losses(whole) - losses(plain)) > 0.01
    rounds = whole.rows[whole.rows["metric"] == "loss"]["round"].to_numpy()
    assert set(rounds[told]) == {3, 4}
    assert (
        simulate(resume=begun.directory, num_server_rounds=3, verbose=False).summary["digest"]
        == whole.summary["digest"]
    )


@pytest.mark.usefixtures("workplace")
def test_the_readme_shows_the_table_that_a_run_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    simulate(results_dir=tmp_path, num_server_rounds=2, samples_per_client=60)

    def shape(text: str) -> list[list[str]]:
        """The lines of a table, without its numbers, which another machine may round otherwise."""
        table = text[text.index("test accuracy  model") : text.index("results: ")]
        return [re.sub(r"[\d.]+", "0", line).split() for line in table.splitlines() if line.strip()]

    assert shape((ROOT / "README.md").read_text()) == shape(capsys.readouterr().out)
