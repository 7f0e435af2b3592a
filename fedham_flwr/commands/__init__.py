"""Commands of `fedham`, a module each, imported when they are called."""
