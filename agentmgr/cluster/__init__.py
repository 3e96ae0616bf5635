"""Instances on other machines: the manager's side of the nodes."""
