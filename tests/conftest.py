"""Puts this folder on the path, for the tests' own `tiny` and `contract`."""
