"""The stacked models of all clients, and what weighs whom each of them learns from."""
