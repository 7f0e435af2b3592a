"""Going on with a run that was interrupted, or starting from what another run has trained."""
