"""Run a federation on this machine: `python run_simulation.py -c 'strategy="fedavg" num-server-rounds=5'`."""

import sys

from fedham_flwr.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command())
