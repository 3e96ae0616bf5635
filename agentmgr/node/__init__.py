"""What runs on a node: the daemon, its instances, and what they need there."""
