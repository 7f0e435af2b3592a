"""Runs compared: statistics over seeds, tasks and clients, and the tables made of them."""
