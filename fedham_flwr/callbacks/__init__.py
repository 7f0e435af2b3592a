"""What is told of a run while it goes on: the protocol, early stopping, trackers."""
