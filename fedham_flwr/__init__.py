"""Personalised federated learning on Flower: every client ends with a model of its own."""

__version__ = "0.1.0"
