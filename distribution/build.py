"""`make dist`: a source archive, a wheel and a Debian package of this tree, all of one version (P10.10).

Theory of operation. What is built is copied into an empty folder first, so that nothing which an earlier build has left
can get into it. The Debian package holds one folder, /usr/lib/muster, which is a virtual environment: the system's own
interpreter under another name, and beside it Muster and the libraries of `requirements.lock` from their wheels, checked
against the hashes there. So installing it compiles nothing and asks no network, and nothing else on the machine sees
those libraries. The wheels hold machine code for one minor version of Python, and for a C library of a certain age; the
package depends on both. Its bytecode is made here, once, so that nothing is written below /usr/lib later.

Everything that `muster install` makes of the commands (manual pages, completion) is in the package; the unit is not,
since it names the store and the node: `muster install` writes it on the machine itself (P10.11). The package starts
nothing.
"""

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from email.parser import HeaderParser
from pathlib import Path
from typing import NamedTuple

from muster import __version__
from muster.setup.installation import PACKAGED, UNIT

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTION = str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"])
FOLDER = "usr/lib/muster"
PROGRAMS = {"muster": "muster.ui.command_line", "musterd": "muster.daemon.main"}
_SOURCES = ("src", "pyproject.toml", "README.md", "LICENSE")
_COMMON_LICENSE = "/usr/share/common-licenses/Apache-2.0"
_GLIBC = re.compile(r"manylinux_2_(\d+)_")
_OLD_GLIBC = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}
# where Debian's zsh looks for what packages bring; /usr/local has the place that `muster install` uses
_ZSH = {"usr/share/zsh/site-functions": "usr/share/zsh/vendor-completions"}


class Target(NamedTuple):
    """The machine that the Debian package is for: its interpreter and architecture."""

    python: str  # as "3.11"
    architecture: str  # as Debian calls it: "amd64"

    @property
    def interpreter(self) -> str:
        """Where Debian has it."""
        return f"/usr/bin/python{self.python}"

    @property
    def libraries(self) -> str:
        """Where the package's libraries are, below its root."""
        return f"{FOLDER}/lib/python{self.python}/site-packages"


class Library(NamedTuple):
    """An installed distribution, as its metadata describes it."""

    name: str
    version: str
    license: str
    places: tuple[str, ...]  # what it has in the folder of libraries, its metadata left out
    texts: tuple[str, ...]  # the files there that hold its license
    tags: tuple[str, ...]  # of the wheel that it came in


def debian_version(version: str) -> str:
    """A version as Debian orders it: 0.2.0rc1 comes before 0.2.0, so it is 0.2.0~rc1 there."""
    return re.sub(r"\.?(a|b|rc|dev)(?=\d)", r"~\1", version)


def control(target: Target, version: str, lowest_glibc: int, size_kib: int) -> str:
    """The package's description of itself. `lowest_glibc` is the minor version of the C library, 2.N."""
    return f"""\
Package: {DISTRIBUTION}
Version: {debian_version(version)}
Architecture: {target.architecture}
Maintainer: {_maintainer()}
Installed-Size: {size_kib}
Depends: python{target.python}, libc6 (>= 2.{lowest_glibc})
Recommends: systemd
Section: admin
Priority: optional
Description: cluster manager for machines that share storage
 Machines that share storage agree who is a member, by a membership database on
 the shared disk and a private interconnect, and keep ordinary services running
 on exactly the right one of them. Nothing is taken over from a machine before
 it is proven to have stopped.
 .
 This package starts nothing. "muster demo" shows it at work on one machine;
 "muster install" makes this machine a node.
"""


def copyright_file(libraries: list[Library], place: str) -> str:
    """Whose what is: Muster's own license, and that of each library below `place`, with the files of its text."""
    lines = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/",
        "Upstream-Name: Muster",
        "",
        "Files: *",
        "Copyright: the authors of Muster",
        "License: Apache-2.0",
        f" The whole text is in {_COMMON_LICENSE}.",
    ]
    for each in libraries:
        if each.name == DISTRIBUTION:
            continue
        lines += ["", *(f"{' ' if at else 'Files:'} {place}/{name}" for at, name in enumerate(each.places))]
        lines += [f"Copyright: the authors of {each.name}", f"License: {each.license}"]
        lines += [f" {each.name} {each.version}; the text is in", *(f" /{place}/{text}" for text in each.texts)]
    return "\n".join(lines) + "\n"


def lowest_glibc(libraries: list[Library]) -> int:
    """The minor version of the C library, 2.N, that all of these run with. Raises `ValueError` for unknown tags."""
    return max([5, *(_glibc(each) for each in libraries if not all(tag.endswith("-any") for tag in each.tags))])


def _glibc(library: Library) -> int:
    """The oldest that its wheel runs with: a wheel may have several tags, of which each is true."""
    tags = " ".join(library.tags)
    minors = [int(minor) for minor in _GLIBC.findall(tags)]
    minors += [minor for old, minor in _OLD_GLIBC.items() if f"{old}_" in tags]
    if not minors:
        raise ValueError(f"no C library is known that {library.name} runs with: {tags}")
    return min(minors)


def read_libraries(folder: Path) -> list[Library]:
    """What is installed in a folder. Raises `ValueError` for what says nothing of its license."""
    return [_read_library(described) for described in sorted(folder.glob("*.dist-info"))]


def _read_library(described: Path) -> Library:
    about = HeaderParser().parsestr((described / "METADATA").read_text())
    wheel = HeaderParser().parsestr((described / "WHEEL").read_text())
    kinds = [line.rpartition(":: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    given = str(about.get("License", "")).strip()
    named = about.get("License-Expression") or (given if "\n" not in given else "") or " or ".join(kinds)
    files = [line.partition(",")[0] for line in (described / "RECORD").read_text().splitlines()]
    inside = [file for file in files if file.startswith(f"{described.name}/")]
    texts = [file for file in inside if re.search(r"(?i)/(licen[cs]e|copying)[^/]*$", file)]
    if not named or not texts:
        raise ValueError(f"{described.name} names no license, or does not hold its text")
    places = {_place(file) for file in files if file not in inside and not file.startswith(("..", "/"))}
    tags = tuple(str(tag) for tag in wheel.get_all("Tag", []))
    return Library(str(about["Name"]), str(about["Version"]), named, tuple(sorted(places)), tuple(sorted(texts)), tags)


def _place(file: str) -> str:
    """A file of a folder of libraries, or all of the folder below that which it is in."""
    first, separator, _ = file.partition("/")
    return f"{first}/*" if separator else first


def build_python(output: Path) -> Path:
    """Write source archive and wheel into `output`; the wheel."""
    with tempfile.TemporaryDirectory(prefix="muster-dist-") as scratch:
        source = Path(scratch) / "source"
        copy_sources(source)
        for build in ("build_sdist", "build_wheel"):
            words = f"import sys; from setuptools import build_meta; build_meta.{build}(sys.argv[1])"
            _run(sys.executable, "-c", words, str(output), cwd=source)
    (wheel,) = output.glob("*.whl")
    return wheel


def copy_sources(folder: Path) -> None:
    """Copy what a wheel is made of, and nothing that was made of it."""
    folder.mkdir()
    made = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in _SOURCES:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, folder / name, ignore=made)
        else:
            shutil.copy2(place, folder / name)


def build_debian(target: Target, wheel: Path, output: Path) -> Path:
    """Write the Debian package of `wheel` into `output`; the package."""
    with tempfile.TemporaryDirectory(prefix="muster-dist-") as scratch:
        root = Path(scratch) / "root"
        libraries = _put_libraries(root, target, wheel)
        _put_programs(root, target)
        _put_pages(root, target, Path(scratch) / "installed")
        _put_documents(root, target, libraries)
        _compile(root, target)
        _put_control(root, target, libraries)
        _set_modes(root)
        package = output / f"{DISTRIBUTION}_{debian_version(__version__)}_{target.architecture}.deb"
        _run("dpkg-deb", "--build", "--root-owner-group", "-Zxz", str(root), str(package))
    return package


def _put_libraries(root: Path, target: Target, wheel: Path) -> list[Library]:
    """Muster and what it needs at run time, as the lock file has it; nothing that only development needs."""
    site = root / target.libraries
    site.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-compile"]
    pip += ["--no-deps", "--only-binary=:all:", "--python-version", target.python, "--target", str(site)]
    _run(*pip, "--require-hashes", "--requirement", str(ROOT / "requirements.lock"))
    shutil.rmtree(site / "bin", ignore_errors=True)  # the libraries' own commands
    _run(*pip, "--no-index", str(wheel))
    shutil.rmtree(site / "bin", ignore_errors=True)
    for described in site.glob("*.dist-info"):
        for file in ("direct_url.json", "REQUESTED"):  # they tell of the machine that built it
            (described / file).unlink(missing_ok=True)
    return read_libraries(site)


def _put_programs(root: Path, target: Target) -> None:
    """The environment's interpreter and its two programs, and the links by which people find them."""
    folder, links = root / FOLDER / "bin", root / "usr/bin"
    folder.mkdir()
    links.mkdir(parents=True)
    (root / FOLDER / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (root / FOLDER / PACKAGED).write_text("/usr\n")
    for name in ("python", "python3"):
        (folder / name).symlink_to(f"../../..{target.interpreter.removeprefix('/usr')}")
    for name, module in PROGRAMS.items():
        (folder / name).write_text(
            f"#!/{FOLDER}/bin/python\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
        )
        (links / name).symlink_to(f"../lib/muster/bin/{name}")


def _put_pages(root: Path, target: Target, scratch: Path) -> None:
    """Manual pages and completion, as `muster install` makes them."""
    scratch.mkdir()
    words = ("install", "--root", str(scratch), "--prefix", "/usr", "--node", "any", "--store", "/any", "--yes")
    # made by the very files that are packed, with the interpreter that is to run them
    environment = {"PATH": os.defpath, "PYTHONPATH": str(root / target.libraries), "PYTHONDONTWRITEBYTECODE": "1"}
    _run(target.interpreter, "-m", PROGRAMS["muster"], *words, cwd=scratch, environment=environment)
    shutil.rmtree(scratch / "usr/share/muster")  # the record of that installation
    shutil.move(scratch / "usr/share", root / "usr/share")
    for there, debian in _ZSH.items():
        shutil.move(root / there, root / debian)
    for page in (root / "usr/share/man").glob("man*/*"):
        _compressed(page)


def _put_documents(root: Path, target: Target, libraries: list[Library]) -> None:
    folder = root / "usr/share/doc" / DISTRIBUTION
    folder.mkdir(parents=True)
    (folder / "copyright").write_text(copyright_file(libraries, target.libraries))
    for name in ("README.md", "SECURITY.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "CHANGELOG.md", folder / "changelog")
    _compressed(folder / "changelog")


def _compressed(file: Path) -> None:
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), 9, mtime=0))
    file.unlink()


def _compile(root: Path, target: Target) -> None:
    """Bytecode that is never compared with its source: both change together, by the package."""
    words = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/")
    _run(target.interpreter, *words, str(root / target.libraries))


def _put_control(root: Path, target: Target, libraries: list[Library]) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
            for path in files]  # fmt: skip
    folder = root / "DEBIAN"
    folder.mkdir()
    size_kib = sum(-(-path.stat().st_size // 1024) for path in files)
    (folder / "control").write_text(control(target, __version__, lowest_glibc(libraries), size_kib))
    (folder / "md5sums").write_text("".join(sums))
    before_removal = (ROOT / "distribution/debian/prerm").read_text()
    (folder / "prerm").write_text(before_removal.replace("@UNIT@", UNIT))


def _set_modes(root: Path) -> None:
    """Readable for all, writable for root, whatever the umask here; programs and scripts can be executed."""
    programs = {root / FOLDER / "bin" / name for name in PROGRAMS} | {root / "DEBIAN/prerm"}
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path in programs else 0o644)


def _maintainer() -> str:
    """Who builds it, as Debian's tools are told; the project names no person."""
    name, address = os.environ.get("DEBFULLNAME", ""), os.environ.get("DEBEMAIL", "")
    return f"{name} <{address}>" if name and address else "whoever has built this package"


def _run(*words: str, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed. Ends the program, with all of that, where it fails."""
    ended = subprocess.run(
        words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if ended.returncode != 0:
        sys.exit(f"{ended.stdout}\n{' '.join(words)} ended with status {ended.returncode}")
    return ended.stdout


def _find_target(interpreter: str) -> Target:
    """The machine that builds it, whose Debian it is for."""
    for program, package in ((interpreter, "python3"), ("dpkg-deb", "dpkg")):
        if shutil.which(program) is None:
            sys.exit(f"there is no {program}: a Debian package is built on Debian (apt-get install {package})")
    version = _run(interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    return Target(version, _run("dpkg", "--print-architecture").strip())


def main() -> None:
    """Write all three into an emptied folder."""
    parser = argparse.ArgumentParser(description="Write source archive, wheel and Debian package.")
    parser.add_argument("--output", type=Path, default=ROOT / "build/dist", help="where; it is emptied [build/dist]")
    parser.add_argument("--python", default="/usr/bin/python3", help="Debian's own, whose version the package is for")
    options = parser.parse_args()
    target = _find_target(options.python)
    output = options.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    wheel = build_python(output)
    build_debian(target, wheel, output)
    for path in sorted(output.iterdir()):
        print(f"{path.stat().st_size / 1e6:6.1f} MB  {os.path.relpath(path)}")
