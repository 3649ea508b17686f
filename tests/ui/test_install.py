"""`muster install`, `uninstall` and `man`: shown first, done on demand, taken away again (P10.11)."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from bad_input import clear
from dev_cluster import CommandLine
from muster.setup import installation
from muster.ui.command_line import muster as program
from muster.ui.manual import commands_of, pages

STORE = ("--store", "/dev/disk/by-id/wwn-0x5000", "--node", "n0")


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_a_dry_run_shows_every_step_and_changes_nothing(muster: CommandLine, tmp_path: Path) -> None:
    shown = muster.succeed("install", *STORE, "--root", str(tmp_path))
    assert "musterd.service" in shown
    assert "nothing is changed yet: add --yes" in shown
    assert list(tmp_path.iterdir()) == []
    answer = muster.json("install", *STORE, "--root", str(tmp_path))
    assert answer["done"] is False
    assert {step["state"] for step in answer["steps"]} == {"new"}
    assert {step["kind"] for step in answer["steps"]} == {"directory", "file", "link"}  # no group, no command: not live


def test_what_is_installed_is_taken_away_again_and_nothing_else(muster: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "usr/local/bin").mkdir(parents=True)
    (tmp_path / "usr/local/bin/other").write_text("not ours")
    muster.succeed("install", *STORE, "--root", str(tmp_path), "--yes")
    made = tree(tmp_path)
    for path in ("bin/muster", "bin/musterd", "lib/systemd/system/musterd.service", "share/man/man1/muster.1"):
        assert f"usr/local/{path}" in made
    assert made["usr/local/bin/muster"] == str(Path(sys.executable).parent / "muster")
    home = tmp_path / "var/lib/muster"
    assert home.stat().st_mode & 0o777 == 0o711  # whom the cluster gives a role passes through
    (home / "key.pem").write_text("a key")
    again = muster.json("install", *STORE, "--root", str(tmp_path), "--yes")
    assert {step["state"] for step in again["steps"]} == {"unchanged"}
    page = tmp_path / "usr/local/share/man/man1/muster.1"
    page.write_text("changed by somebody")
    muster.succeed("uninstall", "--root", str(tmp_path))
    assert tree(tmp_path).keys() == made.keys() | {"var/lib/muster/key.pem"}
    muster.succeed("uninstall", "--root", str(tmp_path), "--yes")
    assert tree(tmp_path).keys() == {
        "usr/local/bin/other",
        "usr/local/share/man/man1/muster.1",
        "var/lib/muster/key.pem",
    }


def test_another_release_replaces_its_own_files_and_no_others(muster: CommandLine, tmp_path: Path) -> None:
    arguments = ("install", "--root", str(tmp_path), "--yes", "--node", "n0")
    muster.succeed(*arguments, "--store", "/dev/old")
    muster.succeed(*arguments, "--store", "/dev/new")
    unit = tmp_path / "usr/local/lib/systemd/system/musterd.service"
    assert "--store /dev/new" in unit.read_text()
    unit.write_text("an administrator's")
    refused = muster.run(*arguments, "--store", "/dev/third")
    assert str(unit) in clear(refused, 1)
    assert unit.read_text() == "an administrator's"
    muster.succeed(*arguments, "--store", "/dev/third", "--force")
    assert "--store /dev/third" in unit.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--store", "relative"], "no absolute path"),
        (["--store", "/x", "--node", "a/b"], "a node cannot be called"),
        (["--store", "/x", "--home", "var"], "no absolute path"),
        (["--store", "/x\n[Service]"], "cannot be printed"),
        (["--store", "/x", "--group", "-x"], "a group cannot be called"),
        (["--store", "/x", "--root", "/nowhere"], "there is no such directory"),
    ],
)
def test_what_cannot_be_installed_is_refused(
    muster: CommandLine, tmp_path: Path, arguments: list[str], words: str
) -> None:
    given = ["--node", "n0", "--root", str(tmp_path), *arguments]
    assert words in clear(muster.run("install", *given, "--yes"), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], ["--yes"], ["--yes", "--force"]])
def test_p10_11_no_machine_is_set_up_with_the_programs_of_a_source_tree(muster: CommandLine, more: list[str]) -> None:
    refused = clear(muster.run("install", *STORE, *more), 1)  # of this very machine: no --root
    assert "runs from a source tree" in refused
    assert str(Path(__file__).resolve().parents[2]) in refused
    assert "make dist" in refused
    assert not Path("/usr/local/lib/systemd/system/musterd.service").exists()


def test_p10_11_an_image_made_from_a_source_tree_is_told(muster: CommandLine, tmp_path: Path) -> None:
    made = muster.json("install", *STORE, "--root", str(tmp_path), "--yes")
    assert [hint for hint in made["hints"] if "a source tree" in hint]


def test_p10_11_what_is_installed_is_no_source_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "lib/python3.11/site-packages/muster"
    monkeypatch.setattr("muster.__file__", str(package / "__init__.py"))
    assert installation.source_tree() is None
    (package.parents[1] / "pyproject.toml").parent.mkdir(parents=True)
    (package.parents[1] / "pyproject.toml").write_text("")
    assert installation.source_tree() == package.parents[1]


def test_what_a_package_has_brought_is_not_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert installation.packaged_below() == ""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / installation.PACKAGED).write_text("/usr\n")
    assert installation.packaged_below() == "/usr"
    settings = installation.InstallationSettings("n0", "/dev/x", root=tmp_path, packaged=installation.packaged_below())
    steps = installation.plan(settings, pages(program, "1.0"), {"share/bash-completion/completions/muster": "x"})
    assert [(step.kind, step.target) for step in steps] == [
        ("directory", str(tmp_path / "var/lib/muster")),
        ("file", str(tmp_path / "usr/local/lib/systemd/system/musterd.service")),
    ]
    assert "ExecStart=/usr/bin/musterd --store /dev/x" in installation.unit_file(settings)


def test_nothing_installed_is_nothing_to_remove(muster: CommandLine, tmp_path: Path) -> None:
    assert "nothing is recorded as installed" in clear(muster.run("uninstall", "--root", str(tmp_path)), 1)
    record = tmp_path / "usr/local/share/muster/installed.json"
    record.parent.mkdir(parents=True)
    record.write_text("[]")
    assert "cannot be read" in clear(muster.run("uninstall", "--root", str(tmp_path)), 1)


@pytest.mark.parametrize("store", ["/dev/disk by id/x", "/srv/100%/$HOME/a", '/srv/"quoted"\\', "/srv/ü;x"])
def test_the_unit_starts_the_daemon_with_exactly_these_words(store: str) -> None:
    settings = installation.InstallationSettings("n0", store, metrics="127.0.0.1:9464")
    (line,) = [each for each in installation.unit_file(settings).splitlines() if each.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart=").replace("%%", "%").replace("$$", "$"))
    assert words == [
        *("/usr/local/bin/musterd", "--store", store, "--node", "n0"),
        *("--home", "/var/lib/muster", "--metrics", "127.0.0.1:9464"),
    ]


def test_systemd_finds_nothing_wrong_with_the_unit(muster: CommandLine, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("not applicable: systemd is not here to read the unit")
    muster.succeed("install", *STORE, "--root", str(tmp_path), "--yes")
    unit = tmp_path / "usr/local/lib/systemd/system/musterd.service"
    program = tmp_path / "usr/local/bin/musterd"
    unit.write_text(unit.read_text().replace("ExecStart=/usr/local/bin/musterd", f"ExecStart={program}"))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    about_it = [line for line in ended.stderr.splitlines() if "musterd" in line]
    assert (ended.returncode, about_it) == (0, [])


def test_the_pages_are_one_line_of_what_is_shown_and_a_home_that_keeps_people_out_is_mended(
    muster: CommandLine, tmp_path: Path
) -> None:
    home = tmp_path / "var/lib/muster"
    home.mkdir(parents=True, mode=0o700)
    arguments = ("install", *STORE, "--root", str(tmp_path))
    shown = muster.succeed(*arguments)
    assert len(shown.splitlines()) < 12
    assert f"changed    permissions {home}" in shown
    assert "muster enrol --store /dev/disk/by-id/wwn-0x5000 --name n0" in muster.succeed(*arguments, "--yes")
    assert home.stat().st_mode & 0o777 == 0o711


def test_the_daemon_understands_the_words_of_its_unit() -> None:
    unit = installation.unit_file(installation.InstallationSettings("n0", "/tmp", "/nowhere"))
    (line,) = [each for each in unit.splitlines() if each.startswith("ExecStart=")]
    words = shlex.split(line.partition("=")[2])[1:]
    ended = subprocess.run(
        [sys.executable, "-m", "muster.daemon.main", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 3, ended.stderr  # of all that may be wrong, the store that is none
    assert "/tmp is neither a regular file nor a block device" in ended.stderr
    assert "StartLimitIntervalSec=0" in unit and "StartLimitBurst" not in unit  # P11.6


def all_commands() -> list[tuple[str, click.Command]]:
    """Every command with its words."""
    return [(" ".join(words), context.command) for words, context in commands_of(program)]


def test_every_command_has_a_manual_page_that_names_it_and_all_its_options(muster: CommandLine, tmp_path: Path) -> None:
    muster.succeed("man", "--output", str(tmp_path / "man"))
    files = {path.name: path.read_text() for path in (tmp_path / "man").iterdir()}
    known = all_commands()
    assert len(known) > 30
    assert set(files) == {f"{words.replace(' ', '-')}.1" for words, _ in known} | {"musterd.8"}
    for words, command in known:
        text = files[f"{words.replace(' ', '-')}.1"].replace("\\-", "-")
        assert f".SH NAME\n{words.replace(' ', '-')} - " in text
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                for option in parameter.opts:
                    assert option in text, (words, option)
        assert "\b" not in text
    daemon = files["musterd.8"].replace("\\-", "-")
    assert all(option in daemon for option in ("--store", "--deadman", "--log-format", "--metrics"))


def test_the_manual_pages_are_good_troff(tmp_path: Path) -> None:
    groff = "/usr/bin/groff"
    if not os.path.exists(groff):
        pytest.skip("not applicable: groff is not here to read them")
    for page in pages(program, "1.0"):
        command = [groff, "-man", "-ww", "-z", "-Tutf8"]
        ended = subprocess.run(command, input=page.text, capture_output=True, text=True, check=True, timeout=60)
        assert ended.stderr == "", page.file


def test_a_page_never_takes_text_for_a_request() -> None:
    @click.command("x", help="A summary.\n\n.so /etc/passwd\n\n'tis \\nothing\n\n\b\n.nf kept\n  as it is")
    def command() -> None:
        """Nothing."""

    (page, _) = pages(command, "1.0")
    body = page.text.partition(".SH DESCRIPTION")[2]
    assert "\n\\&.so /etc/passwd" in body
    assert "\n\\&'tis \\enothing" in body
    assert "\n.nf\n\\&.nf kept\n" in body


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_each_shell(muster: CommandLine, tmp_path: Path, shell: str) -> None:
    answer: Any = muster.json("install", *STORE, "--root", str(tmp_path), "--yes")
    (place,) = [
        step["target"] for step in answer["steps"] if f"/{shell}" in step["target"] and "completion" in step["about"]
    ]
    assert "_MUSTER_COMPLETE" in Path(place).read_text()
    assert json.loads((tmp_path / "usr/local/share/muster/installed.json").read_text())["format"] == 1
