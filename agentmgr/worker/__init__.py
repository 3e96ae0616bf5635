"""Serves the gateway in a process of its own, beside a manager that may come and go."""
