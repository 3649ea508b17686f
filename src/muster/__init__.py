"""Muster. The version stands here and nowhere else: everything that is built or printed reads it (P10.10)."""

__version__ = "0.1.0"
