"""The client halves of the methods, a file for each."""
