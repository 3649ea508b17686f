"""What every command of a service begins with, whoever started the daemon (P8.19, SPEC 6.6).

Environment, limits, umask, scheduling and the score by which the kernel chooses whom to end for memory are those of
this file and of the definition: nothing comes from the shell, the unit or the login that started `musterd`. The unit
protects the node itself (OOMScoreAdjust, open files): a service must not inherit that.

What belongs to the machine (users, files, folders) is looked up in the keeper, below the command's time limit: a
directory service or a file system may hang.

The guard's image imports this module: the standard library only, and little of it.
"""

import contextlib
import os
import resource
import sys
from typing import NamedTuple

from muster.drivers.image.deadman import reset_io_priority

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_UMASK = 0o022
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: the machine has not what the definition names
MAXIMUM_FILE_BYTES = 256 * 1024  # of an environment file
UNLIMITED = "unlimited"
LIMITS = {
    "core": resource.RLIMIT_CORE, "cpu": resource.RLIMIT_CPU, "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE, "memlock": resource.RLIMIT_MEMLOCK, "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC, "rss": resource.RLIMIT_RSS, "stack": resource.RLIMIT_STACK,
    "as": resource.RLIMIT_AS, "msgqueue": resource.RLIMIT_MSGQUEUE, "nice": resource.RLIMIT_NICE,
    "rtprio": resource.RLIMIT_RTPRIO, "sigpending": resource.RLIMIT_SIGPENDING,
}  # fmt: skip
_RLIMIT_RTTIME = 15  # which `resource` does not name
_OOM_SCORE = "/proc/self/oom_score_adj"


class Surroundings(NamedTuple):
    """What a definition says beside the command. Empty: as documented."""

    user: str = ""
    group: str = ""
    directory: str = "/"
    umask: int = DEFAULT_UMASK
    limits: tuple[tuple[str, str], ...] = ()  # name of `LIMITS` -> "N", "unlimited" or "SOFT:HARD"
    environment_file: str = ""


class Missing(Exception):
    """This machine has not what the definition names; the message says what, where and what to do."""


def base_environment(home: str, incarnation: int, names: tuple[str, str]) -> dict[str, str]:
    """The environment of every command, before what the definition and Muster add: always the same on this machine.

    `names`: of the variables that name the node's home and its incarnation.
    """
    user, folder, shell = _own_account()
    own = os.path.dirname(sys.executable)
    path = DEFAULT_PATH if own in DEFAULT_PATH.split(":") else f"{DEFAULT_PATH}:{own}"
    return {
        "PATH": path, "LANG": "C.UTF-8", "HOME": folder, "USER": user, "LOGNAME": user, "SHELL": shell,
        names[0]: home, names[1]: str(incarnation),
    }  # fmt: skip


def _own_account() -> tuple[str, str, str]:
    """Name, folder and shell of the user of this process, by the file alone: nobody is asked who may hang."""
    with contextlib.suppress(OSError), open("/etc/passwd", encoding="utf-8", errors="replace") as file:
        for line in file:
            parts = line.rstrip("\n").split(":")
            if len(parts) == 7 and parts[2] == str(os.getuid()):
                return parts[0], parts[5] or "/", parts[6] or "/bin/sh"
    return str(os.getuid()), "/", "/bin/sh"


def reset_inherited() -> str:
    """Give up what protects or confines the node: score, scheduling, priorities, processors; the score to go back to,
    for the keeper itself.
    """
    before = ""
    with contextlib.suppress(OSError):
        before = _read(_OOM_SCORE)
        set_score("0")
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
    with contextlib.suppress(OSError, ValueError):
        processors = os.sysconf("SC_NPROCESSORS_CONF")
        if len(os.sched_getaffinity(0)) < processors:
            os.sched_setaffinity(0, range(processors))  # the kernel leaves out what a control group forbids
    reset_io_priority()
    return before


def set_score(score: str) -> None:
    """By which the kernel chooses whom to end where memory is short. Raises `OSError`."""
    descriptor = os.open(_OOM_SCORE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, score.encode())
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    """A short file of the kernel's, without the interpreter's text files: those load a codec in each keeper."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 64).decode().strip()
    finally:
        os.close(descriptor)


def reset_limits() -> None:
    """The limits of a service that says nothing: always the same, as far as this process may set them."""
    for number, (soft, hard) in _default_limits().items():
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError):  # only root goes above the hard limit
            with contextlib.suppress(OSError, ValueError):
                most = resource.getrlimit(number)[1]
                resource.setrlimit(number, (_lower(soft, most), _lower(hard, most)))


def _default_limits() -> dict[int, tuple[int, int]]:
    """What the kernel gives the first process, with the open files and the locked memory that systemd gives."""
    unlimited = resource.RLIM_INFINITY
    found = {LIMITS[name]: (unlimited, unlimited) for name in ("as", "cpu", "data", "fsize", "rss")}
    with contextlib.suppress(OSError, ValueError):
        half = int(_read("/proc/sys/kernel/threads-max")) // 2
        found |= {LIMITS[name]: (half, half) for name in ("nproc", "sigpending")}
    return {
        **found, _RLIMIT_RTTIME: (unlimited, unlimited), LIMITS["core"]: (0, unlimited),
        LIMITS["memlock"]: (8 << 20, 8 << 20), LIMITS["msgqueue"]: (819_200, 819_200), LIMITS["nice"]: (0, 0),
        LIMITS["nofile"]: (1024, 524_288), LIMITS["rtprio"]: (0, 0), LIMITS["stack"]: (8 << 20, unlimited),
    }  # fmt: skip


def _lower(one: int, other: int) -> int:
    """The lower one of two limits, of which -1 stands for none."""
    return max(one, other) if resource.RLIM_INFINITY in (one, other) else min(one, other)


def enter(surroundings: Surroundings, environment: dict[str, str]) -> dict[str, str]:
    """Become what the definition says, in the process that is about to execute the command; its environment.

    Raises `Missing`.
    """
    if surroundings.environment_file:
        environment = {**environment, **_variables_in(surroundings.environment_file, environment)}
    for name, value in surroundings.limits:
        _take_limit(name, value)
    if surroundings.user or surroundings.group:
        environment = _become(surroundings, environment)
    try:
        os.chdir(surroundings.directory)
    except OSError as error:
        what = f"working_directory {surroundings.directory}: {error.strerror}"
        raise Missing(f"{what}; make it on this node, and let the user of the service enter it") from error
    os.umask(surroundings.umask)
    return environment


def _take_limit(name: str, value: str) -> None:
    soft, _, hard = value.partition(":")
    numbers = [resource.RLIM_INFINITY if each == UNLIMITED else int(each) for each in (soft, hard or soft)]
    try:
        resource.setrlimit(LIMITS[name], (numbers[0], numbers[1]))
    except (OSError, ValueError) as error:
        what = f"limits.{name} = {value}: this machine does not allow it ({error})"
        raise Missing(f"{what}; give less, or raise the limit of the node (the unit's Limit...)") from error


def _become(surroundings: Surroundings, environment: dict[str, str]) -> dict[str, str]:
    import grp
    import pwd

    try:
        account = pwd.getpwnam(surroundings.user) if surroundings.user else None
    except KeyError as error:
        raise Missing(
            f"user {surroundings.user}: there is no such user on this node; make it, or correct it"
        ) from error
    try:
        group = grp.getgrnam(surroundings.group).gr_gid if surroundings.group else None
    except KeyError as error:
        what = f"group {surroundings.group}: there is no such group on this node"
        raise Missing(f"{what}; make it, or correct it") from error
    try:
        if account is not None:
            os.initgroups(account.pw_name, account.pw_gid if group is None else group)
            os.setgid(account.pw_gid if group is None else group)
            os.setuid(account.pw_uid)
        elif group is not None:
            os.setgroups([])
            os.setgid(group)
    except OSError as error:
        who = surroundings.user or surroundings.group
        raise Missing(
            f"{who}: the node may not run commands as that ({error.strerror}); run musterd as root"
        ) from error
    if account is None:
        return environment
    own = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name, "SHELL": account.pw_shell}
    return {**environment, **own}


def _variables_in(path: str, environment: dict[str, str]) -> dict[str, str]:
    """NAME=VALUE a line, `#` begins a comment; quotation marks around a value are left out. None of Muster's own."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            text = file.read(MAXIMUM_FILE_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        what = f"environment_file {path}: {getattr(error, 'strerror', None) or error}"
        raise Missing(f"{what}; put it on this node") from error
    if len(text) > MAXIMUM_FILE_BYTES:
        raise Missing(f"environment_file {path}: it has more than {MAXIMUM_FILE_BYTES} bytes; shorten it")
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", ";")):
            continue
        name, equals, value = stripped.removeprefix("export ").partition("=")
        if not equals or not name.strip().isidentifier():
            raise Missing(f"environment_file {path}, line {number}: it is no NAME=VALUE; correct it")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if not name.startswith("MUSTER_") or name.strip() not in environment:
            found[name.strip()] = value
    return found
