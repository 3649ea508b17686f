"""Files that only their owner may read: private keys (SPEC 1.4)."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """A file of mode 0600, durable, whole or not there; it replaces one of that name. Raises `OSError`."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(handle, "w") as file:  # of a descriptor
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
