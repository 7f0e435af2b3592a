"""A module that is a task: a model and data."""

from own_objects import linear as build_model
from own_objects import slopes as load_data

__all__ = ["build_model", "load_data"]
