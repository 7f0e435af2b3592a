"""Ways to run a federation on this machine."""
