"""The version, apart from the package's public names, which import all of it."""

__version__ = "0.1.0"
