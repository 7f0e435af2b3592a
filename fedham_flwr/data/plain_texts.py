"""Plain texts: a `.txt` file, or a folder of them, as rows of a text and its file's name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedham_flwr.core.errors import UserError

if TYPE_CHECKING:
    import datasets

SUFFIX = ".txt"
_ASIDE = ("", ".md", SUFFIX)  # endings that a folder of texts may have


def files(path: Path) -> list[Path]:
    """The texts of a source, in the order of their paths; none if it is of another kind.

    Args:
        path: a file, or a folder with nothing in it but texts and what explains them; hidden files don't count.
    """
    if path.is_file():
        return [path] if path.suffix.lower() == SUFFIX else []
    inside = [each for each in path.rglob("*") if each.is_file()]
    seen = [each for each in inside if not any(part.startswith(".") for part in each.relative_to(path).parts)]
    if any(each.suffix.lower() not in _ASIDE for each in seen):
        return []
    return sorted(each for each in seen if each.suffix.lower() == SUFFIX)


def load(path: Path) -> datasets.Dataset | None:
    """A row for each file: `text`, all of it, and `file`, its name without the ending; None if there is none.

    Args:
        path: a file or a folder; of a file in a folder within, the name has the folder's before it.

    Raises:
        UserError: a file is no text in UTF-8.
    """
    found = files(path)
    if not found:
        return None
    import datasets

    root = path if path.is_dir() else path.parent
    texts, names = [], []
    for file in found:
        try:
            texts.append(file.read_text(encoding="utf-8-sig").removesuffix("\n"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"the text {file} is not in UTF-8 (byte {error.start}): save it in that encoding."
            ) from error
        names.append(file.relative_to(root).with_suffix("").as_posix())
    return datasets.Dataset.from_dict({"text": texts, "file": names})
