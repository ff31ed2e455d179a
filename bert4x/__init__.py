"""bert4x: the version number and nothing else; importing this package imports nothing heavy."""

__all__ = ["__version__"]

__version__ = "0.1.0"
