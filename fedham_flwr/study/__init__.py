"""A study: methods tuned on validation, run with several seeds, compared."""
