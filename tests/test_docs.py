"""The documentation: its length, its links, what is generated, its code and its settings."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from fedham_flwr import registry
from fedham_flwr.cli import overrides
from fedham_flwr.reporting import journal
from fedham_flwr.settings import defaults

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


def test_what_is_generated_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("docs_make", ROOT / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for file, text in module.pages().items():
        assert file.read_text() == text, f"{file.name} is out of date: python docs/make.py"


@pytest.mark.parametrize("method", registry.BUILT_IN)
def test_a_method_has_its_page(method: str) -> None:
    page = ROOT / "docs" / "methods" / f"{method}.md"
    headings = {"card-equations-and-round", "settings", "results"}
    assert headings <= anchors(page)
    assert f"methods/{method}.md" in (ROOT / "README.md").read_text()


def test_settings_in_the_pages_exist() -> None:
    own = {"smallnet", "mynet", "myrep", "build-model", "load-data", "load", "fedrep"}
    for page in PAGES:
        for given in re.findall(r"-c '([^']+=[^']+)'", page.read_text()):
            for key in overrides([given]):
                assert key in defaults() or key.partition(".")[0] in own, f"{page.name}: {key}"


CODE = [page for page in PAGES if "```python" in page.read_text() and page.name not in ("results.md", "README.md")]
CODE.append(ROOT / "README.md")


@pytest.mark.parametrize("page", CODE, ids=lambda page: page.name)
def test_the_code_in_a_page_runs(page: Path, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir))
    for name in ("learning_curves", "client_bars", "heat_maps", "self_weight_curves"):
        monkeypatch.setattr(journal, name, lambda *_, **__: None)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    assert len(names) > 2
