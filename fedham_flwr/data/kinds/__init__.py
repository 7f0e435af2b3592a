"""Decoding by kind of data: images, texts and tables."""
