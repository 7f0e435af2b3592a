"""A check before a run: the machine, the data with the settings of a run, and a SuperNode's configuration."""
