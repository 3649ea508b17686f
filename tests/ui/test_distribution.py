"""What is handed to others: one version everywhere, and nothing but what a machine needs (P10.10, P10.11)."""

import re
import subprocess
import sys
import tomllib
from email.parser import HeaderParser
from pathlib import Path

import pytest

import muster as package
from dev_cluster import CommandLine
from distribution.build import (
    DISTRIBUTION,
    ROOT,
    Library,
    Target,
    control,
    copy_sources,
    copyright_file,
    debian_version,
    lowest_glibc,
    read_libraries,
)
from muster.daemon.shell.releases import release

TARGET = Target("3.11", "amd64")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def plain(name: str) -> str:
    """The name of a distribution, of a requirement too, as PyPI compares them."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", name)[0]).lower()


def locked(file: str) -> set[str]:
    """What a lock file names."""
    return {plain(line) for line in (ROOT / file).read_text().splitlines() if re.match(r"[A-Za-z]", line)}


def library(**given: object) -> Library:
    """A library of no importance."""
    wanted = {"name": "x", "version": "1", "license": "MIT", "places": ("x/*",), "texts": (), "tags": ("py3-none-any",)}
    return Library(**(wanted | given))  # type: ignore[arg-type]


def test_p10_10_program_daemon_wheel_and_package_are_of_one_version(muster: CommandLine, tmp_path: Path) -> None:
    copy_sources(tmp_path / "source")
    build = "import sys; from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path / "source", check=True, timeout=60,
                   capture_output=True)  # fmt: skip
    (described,) = tmp_path.glob("*.dist-info")
    wheel = HeaderParser().parsestr((described / "METADATA").read_text())
    debian = HeaderParser().parsestr(control(TARGET, package.__version__, 34, 1))
    assert (wheel["Name"], debian["Package"]) == (DISTRIBUTION, DISTRIBUTION)
    assert muster.succeed("--version").strip() == f"muster {package.__version__}"
    assert {wheel["Version"], release(), str(debian["Version"]).replace("~", "")} == {package.__version__}


def test_p10_10_the_manual_pages_name_it(muster: CommandLine, tmp_path: Path) -> None:
    muster.succeed("man", "--output", str(tmp_path))
    for page in ("muster.1", "musterd.8"):
        assert package.__version__ in (tmp_path / page).read_text()


def test_p10_11_a_machine_gets_what_is_needed_at_run_time_and_no_tools() -> None:
    needed = {plain(each) for each in PROJECT["dependencies"]}
    tools = {plain(each) for each in PROJECT["optional-dependencies"]["dev"]}
    assert needed <= locked("requirements.lock")
    assert tools <= locked("requirements-dev.lock")
    assert not tools & locked("requirements.lock")


def test_the_package_depends_on_what_its_machine_code_was_made_for() -> None:
    assert "\nDepends: python3.13, libc6 (>= 2.34)\n" in control(Target("3.13", "arm64"), "1.0", 34, 1)


@pytest.mark.parametrize(
    ("version", "debian"),
    [("0.1.0", "0.1.0"), ("1.2.0rc1", "1.2.0~rc1"), ("1.2.0a3", "1.2.0~a3"), ("1.2.0.dev4", "1.2.0~dev4")],
)
def test_debian_orders_versions_that_come_before_a_release_before_it(version: str, debian: str) -> None:
    assert debian_version(version) == debian


@pytest.mark.parametrize(
    ("tags", "lowest"),
    [
        (["py3-none-any"], 5),
        (["py3-none-any", "cp311-abi3-manylinux_2_34_x86_64"], 34),
        (["cp311-cp311-manylinux_2_28_x86_64 cp311-cp311-manylinux2014_x86_64"], 17),
        (["cp311-cp311-manylinux2014_x86_64", "cp311-cp311-manylinux_2_28_aarch64"], 28),
    ],
)
def test_the_oldest_c_library_that_runs_all_wheels_is_named(tags: list[str], lowest: int) -> None:
    assert lowest_glibc([library(tags=tuple(each.split())) for each in tags]) == lowest


def test_a_wheel_that_was_compiled_for_this_very_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="no C library"):
        lowest_glibc([library(tags=("cp311-cp311-linux_x86_64",))])


def test_whose_a_library_is_stands_in_the_package(tmp_path: Path) -> None:
    described = tmp_path / "thing-1.5.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Name: thing\nVersion: 1.5\nLicense-Expression: BSD-3-Clause\n\nAbout it.\n")
    (described / "WHEEL").write_text("Tag: py3-none-any\n")
    inside = ["METADATA", "WHEEL", "RECORD", "licenses/LICENSE.txt"]
    files = ["thing/__init__.py", "thing/a/b.py", "_thing.so", "../../bin/thing"]
    record = "".join(f"{file},,\n" for file in [*files, *(f"{described.name}/{name}" for name in inside)])
    (described / "RECORD").write_text(record)
    (found,) = read_libraries(tmp_path)
    text = f"{described.name}/licenses/LICENSE.txt"
    assert found == Library("thing", "1.5", "BSD-3-Clause", ("_thing.so", "thing/*"), (text,), ("py3-none-any",))
    written = copyright_file([found], "usr/lib/x")
    assert "Files: usr/lib/x/_thing.so\n  usr/lib/x/thing/*\n" in written
    assert f"License: BSD-3-Clause\n thing 1.5; the text is in\n /usr/lib/x/{text}\n" in written
    (described / "RECORD").write_text("thing/__init__.py,,\n")
    with pytest.raises(ValueError, match=re.escape(described.name)):
        read_libraries(tmp_path)
