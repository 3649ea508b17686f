"""Which release this is, as it was installed."""

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """The release, as `0.1.0`; `unknown` where the package runs from a folder that was never installed."""
    try:
        return version("muster")
    except PackageNotFoundError:
        return "unknown"
