"""The package of the release after this one: this very tree under the next number, so that it can be upgraded to."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lab.machines import ROOT
from muster import __version__

_VERSION = re.compile(r'(?m)^__version__ = ".*"$')
_COPIED = ("src", "distribution", "docs", "lab", "pyproject.toml", "requirements.lock", "README.md", "LICENSE",
           "SECURITY.md", "CHANGELOG.md")  # fmt: skip


def next_version() -> str:
    """The number that comes after this release's, for Python and for Debian."""
    return f"{__version__}.post1"


def next_package(folder: Path) -> Path:
    """Build it below `folder`. Needs the network. Raises `OSError`."""
    output = folder / "next"
    with tempfile.TemporaryDirectory(prefix="next-", dir=folder) as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir()
        made = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=made)
            else:
                shutil.copy2(source, tree / name)
        about = tree / "src/muster/__init__.py"
        about.write_text(_VERSION.sub(f'__version__ = "{next_version()}"', about.read_text()))
        words = [sys.executable, "distribution", "--output", str(output)]
        environment = {"PYTHONPATH": str(tree / "src"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        done = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"the next package cannot be built: {done.stdout}{done.stderr}")
    (package,) = output.glob("*.deb")
    return package
