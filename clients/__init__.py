"""The client halves of the methods, by name."""

from clients.amn import AMNClient
from clients.base import RoundClient
from clients.fedavg import FedAvgClient
from clients.fedham import FedHAMClient
from clients.fedper import FedPerClient
from clients.fedprox import FedProxClient
from clients.fedtp import FedTPClient
from clients.fedtransfer import FedTransferClient
from clients.local import LocalClient
from clients.pfedla import PFedLAClient

CLIENTS: dict[str, type[RoundClient]] = {
    "local": LocalClient,
    "fedavg": FedAvgClient,
    "fedprox": FedProxClient,
    "fedper": FedPerClient,
    "pfedla": PFedLAClient,
    "amn": AMNClient,
    "fedham": FedHAMClient,
    "fedtp": FedTPClient,
    "fedtransfer": FedTransferClient,
}
