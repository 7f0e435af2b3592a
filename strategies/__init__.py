"""The server halves of the methods, a file for each."""
