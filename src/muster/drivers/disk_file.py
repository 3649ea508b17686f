"""`open_header` by the name that administrators' scripts know: an entry over `drivers/store/disk/file.py`."""

from muster.drivers.store.disk.file import open_header

__all__ = ["open_header"]
