"""Commands of `fedham` that have a module of their own."""
