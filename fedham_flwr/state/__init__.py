"""What a client keeps between rounds, in memory and on disk."""
