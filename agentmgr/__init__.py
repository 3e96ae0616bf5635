"""Keeps agent services running and gives their clients one address."""

__version__ = "0.1.0"
