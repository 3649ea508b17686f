"""Setting a real machine up as a node, and taking that away again (P10.11): what would be done, and doing it.

A plan is a list of steps, each of which says what it would change and whether that is needed. Doing a plan again
changes nothing. What was put there is recorded beside it, so that `uninstall` removes that and nothing else; a file
that somebody has changed or made before is never replaced without --force.

With a root directory other than / only files are made: a package, an image or a test is installed into; no group is
made and no service manager told.
"""

import contextlib
import grp
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import muster
from muster.client.errors import ClientError
from muster.records.names import NAME, NAME_RULE
from muster.setup.errors import Mistaken
from muster.setup.nodes import Document

UNIT = "musterd.service"
RECORD = "share/muster/installed.json"
GROUPS = ("muster-observer", "muster-operator", "muster-admin")
STOP_TIMEOUT_S = 900  # a graceful leave waits for the services' stop commands
_ENDPOINT = re.compile(r"unix:/.+|(127\.\d+\.\d+\.\d+|localhost|\[::1\]):\d{1,5}")
_PROGRAMS = ("muster", "musterd")
PACKAGED = "packaged"  # a file of the environment that a package brings; in it, where programs and pages are: /usr


class Page(NamedTuple):
    """One manual page; `file` is its name with the section, as `muster-node-leave.1`."""

    file: str
    text: str


class InstallationSettings(NamedTuple):
    """What is installed, and where."""

    node: str
    store: str
    home: str = "/var/lib/muster"
    prefix: str = "/usr/local"
    root: Path = Path("/")
    groups: tuple[str, ...] = GROUPS
    metrics: str = ""
    force: bool = False
    packaged: str = ""  # the prefix of the package that has brought programs and pages; empty: they are put there now

    def path(self, *parts: str) -> Path:
        """A path below the root directory."""
        return self.root.joinpath(*(part.lstrip("/") for part in parts))

    @property
    def record(self) -> Path:
        """Where it is recorded what was installed."""
        return self.path(self.prefix, RECORD)

    @property
    def programs(self) -> str:
        """The folder of the programs, for a unit."""
        return f"{self.packaged or self.prefix}/bin"

    @property
    def is_live(self) -> bool:
        """Whether this machine itself is set up, and no folder."""
        return self.root == Path("/")


class Step(NamedTuple):
    """One change: `kind` is what (group, directory, file ...); `state` new, changed, unchanged or foreign."""

    kind: str
    target: str
    about: str
    state: str
    do: Callable[[], None]
    digest: str = ""


def check_settings(settings: InstallationSettings) -> None:
    """Raise `Mistaken` for what cannot be installed."""
    if not NAME.fullmatch(settings.node):
        raise Mistaken(f"a node cannot be called {settings.node!r}", "--node", f"a name has {NAME_RULE}")
    for option, value in (("--store", settings.store), ("--home", settings.home), ("--prefix", settings.prefix)):
        if not os.path.isabs(value):
            raise Mistaken(f"{value!r} is no absolute path", option, "give the whole path, from /")
        if any(not character.isprintable() for character in value):
            raise Mistaken("it holds characters that cannot be printed", option, "choose another path")
    for group in settings.groups:
        if not NAME.fullmatch(group):
            raise Mistaken(f"a group cannot be called {group!r}", "--group", f"a name has {NAME_RULE}")
    if settings.metrics and not _ENDPOINT.fullmatch(settings.metrics):
        what = f"{settings.metrics!r} is no endpoint of this machine"
        raise Mistaken(what, "--metrics", "write 127.0.0.1:PORT or unix:/PATH")
    if not settings.root.is_dir():
        raise Mistaken("there is no such directory", f"--root {settings.root}", "make it first")


def packaged_below() -> str:
    """The prefix below which a package has put programs, pages and completion; empty where none has."""
    try:
        return Path(sys.prefix, PACKAGED).read_text().strip()
    except OSError:
        return ""


def source_tree() -> Path | None:
    """The source tree that this program runs from, as an editable installation does; None where it is installed."""
    root = Path(muster.__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() else None


def refuse_source_tree(settings: InstallationSettings) -> None:
    """Raise `ClientError` where this machine itself would be set up to run what somebody works on (P10.11)."""
    tree = source_tree()
    if settings.is_live and tree is not None:
        raise ClientError(
            "this program runs from a source tree, which changes as it is worked on; no machine is set up with it",
            str(tree),
            "make the package there (make dist), install it, and use its muster install",
        )


def unit_file(settings: InstallationSettings) -> str:
    """The systemd unit of the node."""
    words = [f"{settings.programs}/musterd", "--store", settings.store, "--node", settings.node]
    words += ["--home", settings.home, *(["--metrics", settings.metrics] if settings.metrics else [])]
    return f"""\
# Made by `muster install`; `systemctl edit musterd` changes it without touching this file.
[Unit]
Description=Muster cluster node {settings.node}
Documentation=man:musterd(8) man:muster(1)
After=network-online.target remote-fs-pre.target local-fs.target
Wants=network-online.target
RequiresMountsFor={_unit_word(settings.home)}
# it is tried again without end: what keeps a node from starting may pass after hours
StartLimitIntervalSec=0

[Service]
Type=notify
# the daemon, which is restarted below the guard, says READY and STATUS
NotifyAccess=all
ExecStart={" ".join(_unit_word(word) for word in words)}
# the guard hears SIGTERM and leaves gracefully: services move elsewhere first
KillMode=mixed
# that ends the caretaker with the guard, so what services have left in this machine is cleared here
ExecStopPost=-{" ".join(_unit_word(word) for word in (*words, "--clear"))}
TimeoutStartSec=infinity
TimeoutStopSec={STOP_TIMEOUT_S}
# while stop commands run the node asks for more time, for 24 h in all unless this says otherwise
#Environment=MUSTER_LONGEST_STOP=24h
# 2 and 3: wrong options, or a start that is refused for good; the log says what to do, and trying again does not help.
# What may pass by itself is waited for, or ends with 75 (not now) and is tried again.
RestartPreventExitStatus=2 3
Restart=on-failure
RestartSec=5
WatchdogSec=30
WatchdogSignal=SIGKILL
# the guard holds its memory and its priority, so that no other load can delay the lease
LimitMEMLOCK=infinity
LimitRTPRIO=99
LimitNOFILE=65536
OOMScoreAdjust=-900
TasksMax=infinity
# services are the node's own: they end with it, and must not be hidden from it
Delegate=no
PrivateTmp=no

[Install]
WantedBy=multi-user.target
"""


def _unit_word(word: str) -> str:
    """A word of ExecStart as systemd reads it back."""
    safe = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{safe}"' if any(character in safe for character in " \t'\"\\;") else safe


def plan(settings: InstallationSettings, pages: list[Page], completions: dict[str, str]) -> list[Step]:
    """What is to be done, in order; steps that are needed no more say so. Raises `ClientError`."""
    recorded = _recorded(settings)
    steps = [_group(name) for name in settings.groups] if settings.is_live else []
    steps.append(_directory(settings.path(settings.home), "this node's home: its key, socket and state", 0o711))
    folder = Path(sys.executable).parent
    if not settings.packaged and str(folder) != settings.programs:
        steps += [_link(settings.path(settings.prefix, "bin", name), folder / name, recorded) for name in _PROGRAMS]
    files = {f"lib/systemd/system/{UNIT}": (unit_file(settings), "runs the node, as systemd's service musterd")}
    if not settings.packaged:
        for page in pages:
            files[f"share/man/man{page.file[-1]}/{page.file}"] = (page.text, "manual page")
        for place, script in completions.items():
            files[place] = (script, "completion for a shell")
    for place, (text, about) in files.items():
        steps.append(_file(settings.path(settings.prefix, place), text, about, recorded))
    if settings.is_live and Path("/run/systemd/system").is_dir():
        steps += [_command("systemctl", "daemon-reload"), _command("systemctl", "enable", UNIT)]
    return steps


def carry_out(settings: InstallationSettings, steps: list[Step]) -> None:
    """Do what is needed of a plan, then record it. Raises `ClientError`, before anything is changed where it can."""
    foreign = [step.target for step in steps if step.state == "foreign"]
    if foreign and not settings.force:
        what = f"there is something else already: {', '.join(foreign[:5])}"
        raise ClientError(what, str(settings.root), "move it away, or replace it with --force")
    if settings.is_live and os.geteuid() != 0:
        raise ClientError("only root can set this machine up", "muster install", "run it with sudo, or name a --root")
    done: dict[str, str] = {**_recorded(settings)}
    for step in steps:
        if step.state != "unchanged":
            try:
                step.do()
            except OSError as error:
                where, reason = str(error.filename or step.target), error.strerror or str(error)
                raise ClientError(reason, where, "fix that, and run it again: what is done stays done") from error
            except subprocess.CalledProcessError as error:
                what = f"{step.target} failed: {(error.stderr or '').strip() or f'status {error.returncode}'}"
                raise ClientError(what, step.kind, "fix that, and run it again: what is done stays done") from error
        if step.kind in {"file", "link"}:
            done[step.target] = step.digest
        _write_record(settings, done)


def removal(settings: InstallationSettings) -> list[Step]:
    """What `uninstall` would remove: what is recorded and still as it was put there. Raises `ClientError`."""
    recorded = _recorded(settings)
    if not recorded:
        raise ClientError(
            "nothing is recorded as installed", str(settings.record), "give the --prefix and --root of it"
        )
    steps = []
    told = settings.is_live and Path("/run/systemd/system").is_dir()
    if told:
        steps.append(_command("systemctl", "disable", UNIT))
    for target, digest in recorded.items():
        path = Path(target)
        state = "gone" if not os.path.lexists(path) else "installed" if _digest_of(path) == digest else "foreign"
        about = {"gone": "is there no more", "foreign": "was changed since: left alone"}.get(state, "is removed")
        steps.append(Step("file", target, about, state, path.unlink, digest))
    record = settings.record
    steps.append(Step("file", str(record), "is removed", "installed", record.unlink))
    return [*steps, _command("systemctl", "daemon-reload")] if told else steps


def take_away(settings: InstallationSettings, steps: list[Step]) -> None:
    """Do what `removal` planned. Raises `ClientError`."""
    if settings.is_live and _runs():
        raise ClientError("the node runs", UNIT, "stop it first, which is a graceful leave: systemctl stop musterd")
    for step in steps:
        if step.state in {"foreign", "gone"}:
            continue
        try:
            step.do()
        except OSError as error:
            raise ClientError(error.strerror or str(error), step.target, "fix that, and run it again") from error
        except subprocess.CalledProcessError as error:
            raise ClientError(f"{step.target} failed: {error.stderr}", step.kind, "see systemctl status") from error
    for step in steps:
        if step.kind == "file":
            for folder in list(Path(step.target).parents)[:3]:
                with contextlib.suppress(OSError):  # what others use too is not empty
                    if folder.name in {"muster", "man1", "man8", "completions", "site-functions"}:
                        folder.rmdir()


def _runs() -> bool:
    """Whether systemd has the node up, or on its way up or down."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        return False
    words = ("systemctl", "is-active", UNIT)
    asked = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    return asked.stdout.strip() in {"active", "reloading", "activating", "deactivating"}


def hints(settings: InstallationSettings) -> list[str]:
    """What a person has still to do or to know."""
    found = []
    key = settings.path(settings.home, "key.pem")
    if not key.exists():
        found.append(
            f"{settings.home} holds no key yet: muster enrol --store {settings.store} --name {settings.node} makes "
            "one, with the token of muster node add; or put there what muster init has made for this node"
        )
    tree = source_tree()
    if tree is not None:
        found.append(f"its programs are those of {tree}, a source tree; a machine gets the package (make dist)")
    if settings.is_live and not os.path.exists(settings.store):
        found.append(f"there is no {settings.store} yet: connect the device, or make it with muster init")
    if settings.is_live and not Path("/dev/watchdog").exists():
        found.append(
            "this machine shows no watchdog: a hung kernel then proves nothing to the others. Load the driver of its "
            "hardware (most servers: ipmi_watchdog or iTCO_wdt). A virtual machine has that of its host"
        )
    missing = [group for group in settings.groups if not _group_exists(group)]
    if settings.is_live and not missing and settings.groups:
        found.append(f"let people in: usermod --append --groups {settings.groups[0]} USER")
    found.append("start it: systemctl start musterd; see it: systemctl status musterd, muster status")
    return found


def document(settings: InstallationSettings, steps: list[Step], *, done: bool) -> Document:
    """A plan for JSON."""
    shown = [{"kind": s.kind, "target": s.target, "about": s.about, "state": s.state} for s in steps]
    return {"root": str(settings.root), "prefix": settings.prefix, "done": done, "steps": shown}


# --- steps ------------------------------------------------------------------------------------------------------------


def _group(name: str) -> Step:
    state = "unchanged" if _group_exists(name) else "new"
    return Step("group", name, "who may use the control socket", state, lambda: _run("groupadd", "--system", name))


def _group_exists(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _directory(path: Path, about: str, mode: int) -> Step:
    def make() -> None:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)

    if path.is_dir() and stat.S_IMODE(path.stat().st_mode) & mode != mode:  # as of a home that was copied there
        return Step("permissions", str(path), "users with a role in the cluster pass through", "changed", make)
    state = "unchanged" if path.is_dir() else "foreign" if os.path.lexists(path) else "new"
    return Step("directory", str(path), about, state, make)


def _file(path: Path, text: str, about: str, recorded: dict[str, str]) -> Step:
    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(text)
        draft.chmod(0o644)
        draft.replace(path)

    digest = hashlib.sha256(text.encode()).hexdigest()
    return Step("file", str(path), about, _state(path, digest, recorded), write, digest)


def _link(path: Path, program: Path, recorded: dict[str, str]) -> Step:
    def link() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.unlink(missing_ok=True)
        draft.symlink_to(program)
        draft.replace(path)

    digest = f"-> {program}"
    return Step("link", str(path), f"-> {program}", _state(path, digest, recorded), link, digest)


def _command(*words: str) -> Step:
    return Step("command", " ".join(words), "tells systemd", "new", lambda: _run(*words))


def _run(*words: str) -> None:
    if shutil.which(words[0]) is None:
        raise FileNotFoundError(2, "there is no such program", words[0])
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=120)


def _state(path: Path, digest: str, recorded: dict[str, str]) -> str:
    if not os.path.lexists(path):
        return "new"
    found = _digest_of(path)
    if found == digest:
        return "unchanged"
    return "changed" if found is not None and recorded.get(str(path)) == found else "foreign"


def _digest_of(path: Path) -> str | None:
    try:
        if path.is_symlink():
            return f"-> {os.readlink(path)}"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _recorded(settings: InstallationSettings) -> dict[str, str]:
    try:
        found = json.loads(settings.record.read_text())["files"]
        return {str(path): str(digest) for path, digest in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        advice = "remove it if nothing of Muster is installed there"
        raise ClientError(
            f"the record of what is installed cannot be read: {error}", str(settings.record), advice
        ) from error


def _write_record(settings: InstallationSettings, files: dict[str, str]) -> None:
    record = settings.record
    record.parent.mkdir(parents=True, exist_ok=True)
    draft = record.with_suffix(".new")
    draft.write_text(json.dumps({"format": 1, "files": files}, indent=1) + "\n")
    draft.replace(record)
