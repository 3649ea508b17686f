"""Which release this is: that of the code that runs, whatever has been installed since it began (P10.10)."""

from muster import __version__


def release() -> str:
    """The release, as `0.1.0`."""
    return __version__
