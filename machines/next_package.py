"""The package of the release after a given one: the same programs under the next number, so it can be upgraded to.

It is made of the package itself, in seconds: its number stands in the control file, in one module, and in that
module's bytecode, which is never compared with its source.
"""

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from muster import __version__

_VERSION = re.compile(r'(?m)^__version__ = ".*"$')


def next_version() -> str:
    """The number that comes after this release's, for Python and for Debian."""
    return f"{__version__}.post1"


def next_package(package: Path, folder: Path) -> Path:
    """Make it of `package`, below `folder`. Raises `OSError`."""
    output = folder / "next"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="next-", dir=folder) as scratch:
        root = Path(scratch) / "root"
        _run("dpkg-deb", "--raw-extract", str(package), str(root))
        (module,) = root.glob("usr/lib/muster/lib/python*/site-packages/muster/__init__.py")
        module.write_text(_VERSION.sub(f'__version__ = "{next_version()}"', module.read_text()))
        place = module.parent.relative_to(root)
        words = ["-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
        _run("/usr/bin/python3", *words, "-l", str(root / place), "-x", r".*/(?!__init__\.py)[^/]*$")
        control = root / "DEBIAN/control"
        control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1.post1", control.read_text()))
        _sum(root)
        _run("dpkg-deb", "--build", "--root-owner-group", "-Zgzip", "-z1", str(root), str(output))
    (made,) = output.glob("*.deb")
    return made


def _sum(root: Path) -> None:
    """The sums that `dpkg --verify` compares."""
    listed = root / "DEBIAN/md5sums"
    names = [line.split("  ", 1)[1] for line in listed.read_text().splitlines()]
    sums = [(hashlib.md5((root / name).read_bytes(), usedforsecurity=False).hexdigest(), name) for name in names]
    listed.write_text("".join(f"{digest}  {name}\n" for digest, name in sums))


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
