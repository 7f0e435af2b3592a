"""The settings of the data: which data set, who holds which sample, and what is kept from training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fedham_flwr.data.kinds.image_pixels import ImageSettings
from fedham_flwr.data.kinds.series_settings import SeriesSettings
from fedham_flwr.data.kinds.table_settings import AS_FOUND, TableSettings
from fedham_flwr.data.kinds.words import TextSettings
from fedham_flwr.data.schema import read_schema

CLASS_GROUPS = "class-groups"
"""The partitioner by which client k is of group k mod G, whatever the clients' sizes are."""


def resolved(partitioner: str, client_column: str, class_table: str) -> str:
    """The partitioner that `auto` stands for: what goes with the column or the table that is named, else pathological.

    Args:
        partitioner: the setting; any other stays as it is.
        client_column: the setting.
        class_table: the setting.
    """
    if partitioner != "auto":
        return partitioner
    return "natural" if client_column else "class-table" if class_table else "pathological"


@dataclass(frozen=True)
class Partitioning:
    """How samples are dealt to clients.

    Attributes:
        partitioner: iid | dirichlet | pathological | noniid-1 | noniid-2 | class-groups | class-owners | class-table |
            natural | files.
        alpha: dirichlet: concentration, > 0; small is skewed.
        classes_per_client: pathological and noniid-1: the classes of one client; noniid-2: those it has most of.
        seed: of the data: that of the run, or `data-seed`.
        samples_per_client: the most samples of one client, 0 for as many as it is dealt.
        owner_share: class-owners: the part of each class that its owner alone has, in [0, 1].
        class_table: class-table: the path of the table; read by `class_tables.read_table`, not here.
        own: the settings of a function of a user's that deals the samples; None without.
        groups: class-groups: G, in which client k is of group k mod G.
    """

    partitioner: str = "pathological"
    alpha: float = 0.1
    classes_per_client: int = 2
    seed: int = 0
    samples_per_client: int = 0
    owner_share: float = 0.9
    class_table: str = ""
    own: Any = None
    groups: int = 0


@dataclass(frozen=True)
class Fractions:
    """Parts of a client's samples kept from training: validation in [0, 1), test in (0, 1), together below 1."""

    validation: float = 0.1
    test: float = 0.25


@dataclass(frozen=True)
class DataSettings:
    """Which data set, and how it is dealt.

    Attributes:
        dataset: digits, a local folder or file, or a name on the Hugging Face Hub.
        feature_column: empty: the only image column, else the column called text; a table's columns, with blanks
            between.
        label_column: empty: the only class-label column; of a text: there is none. Of values and labels to be had
            several at a time there may be several columns, with blanks between.
        client_column: names the client of each sample; read by the natural partitioner only.
        sequence_length: text: tokens of one sample, T.
        vocabulary: text: its characters, in the order of their codes; empty: the 100 of `string.printable`.
        min_characters: text, natural partitioner: clients with fewer are left out.
        partitioning: who holds which sample.
        fractions: of each client's samples, for validation and test.
        cache_dir: empty: fedham-flwr in the user's cache folder.
        target: what is to be learned: auto, class, multi-label, value or next-token.
        own: the settings of a function of a user's that loads the data; None without.
        image_size: pixels of the square that images are resized to; 0: they stay as they are.
        image: how images are resized, and what becomes of those that can't be read.
        table: how files of rows are read, and what their columns may hold.
        series: how long samples of series are, and how recordings are cut into them.
        text: what tokens of texts are.
        categories: those that sites have agreed upon, as JSON: column -> words; empty: none.
        shift: how each group's samples are changed, see `groups`; empty: in no way.
    """

    dataset: str = "digits"
    feature_column: str = ""
    label_column: str = ""
    client_column: str = ""
    sequence_length: int = 80
    vocabulary: str = ""
    min_characters: int = 0
    partitioning: Partitioning = field(default_factory=Partitioning)
    fractions: Fractions = field(default_factory=Fractions)
    cache_dir: str = ""
    target: str = "auto"
    own: Any = None
    image_size: int = 0
    image: ImageSettings = field(default_factory=ImageSettings)
    table: TableSettings = AS_FOUND
    series: SeriesSettings = field(default_factory=SeriesSettings)
    text: TextSettings = field(default_factory=TextSettings)
    categories: str = ""
    shift: tuple[str, ...] = ()

    def table_key(self) -> dict[str, str]:
        """Of the settings under `table.` those that are not the defaults, by name; of the schema what it says.

        Raises:
            UserError: the schema can't be read.
        """
        given = {f"table.{key}": value for key, value in asdict(self.table).items() if value != getattr(AS_FOUND, key)}
        schema = read_schema(self.table.schema)
        given |= {"table.schema": schema.digest} if schema else {}
        return given | ({"categories": self.categories} if self.categories else {})
