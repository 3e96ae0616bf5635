"""Decides: pure functions and values. No trio, sockets, files, clock or randomness of its own."""
