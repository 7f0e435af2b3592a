"""The server halves of the methods, by name."""

from strategies.amn import AMNStrategy
from strategies.base import RoundStrategy
from strategies.fedavg import FedAvgStrategy
from strategies.fedham import FedHAMStrategy
from strategies.fedper import FedPerStrategy
from strategies.fedprox import FedProxStrategy
from strategies.fedtp import FedTPStrategy
from strategies.fedtransfer import FedTransferStrategy
from strategies.local import LocalStrategy
from strategies.pfedla import PFedLAStrategy

STRATEGIES: dict[str, type[RoundStrategy]] = {
    "local": LocalStrategy,
    "fedavg": FedAvgStrategy,
    "fedprox": FedProxStrategy,
    "fedper": FedPerStrategy,
    "pfedla": PFedLAStrategy,
    "amn": AMNStrategy,
    "fedham": FedHAMStrategy,
    "fedtp": FedTPStrategy,
    "fedtransfer": FedTransferStrategy,
}
