"""The contract of a method, its rounds, and the messages between server and clients."""
