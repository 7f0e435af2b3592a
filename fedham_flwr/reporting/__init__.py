"""What remains of a run and what is shown of it: files, statistics, terminal, plots."""
