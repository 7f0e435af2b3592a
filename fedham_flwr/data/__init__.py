"""What a client sees: sources, columns, partitions, and the cache of decoded data sets."""
