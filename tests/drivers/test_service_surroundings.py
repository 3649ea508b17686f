"""P8.19: what a command of a service begins with is the same whoever started the daemon, and as its definition says."""

import json
import os
import pwd
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.drivers.image.service_surroundings import DEFAULT_PATH, base_environment
from real_runner import RealRunner, shell

WHAT_IT_HAS = (
    "import json, os, resource, sys; json.dump({'environment': dict(os.environ), 'folder': os.getcwd(), "
    "'umask': os.umask(0), 'ids': [os.getuid(), os.getgid(), sorted(os.getgroups())], 'nice': os.nice(0), "
    "'score': open('/proc/self/oom_score_adj').read().strip(), 'files': resource.getrlimit(resource.RLIMIT_NOFILE), "
    "'core': resource.getrlimit(resource.RLIMIT_CORE)[0], 'policy': os.sched_getscheduler(0), "
    "'limits': open('/proc/self/limits').read(), 'processors': len(os.sched_getaffinity(0))}, open(sys.argv[1], 'w'))"
)
# What whoever starts the daemon may have done before: the limits of a shell or a unit, taskset, ionice.
ODD = """
import ctypes, os, resource
for name, soft in (("NPROC", 3000), ("FSIZE", 1 << 30), ("STACK", 1 << 20), ("NOFILE", 500), ("MEMLOCK", 4096),
                   ("AS", 1 << 40), ("CPU", 3600), ("SIGPENDING", 100), ("MSGQUEUE", 10), ("DATA", 1 << 40)):
    number = getattr(resource, f"RLIMIT_{name}")
    resource.setrlimit(number, (soft, resource.getrlimit(number)[1]))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
number = {"x86_64": 251, "aarch64": 30}.get(os.uname().machine)
if number:
    ctypes.CDLL(None).syscall(number, 1, 0, 3 << 13)  # the class for what is idle
"""
CLASS = "import ctypes, sys; print(ctypes.CDLL(None).syscall(int(sys.argv[1]), 1, 0) >> 13)"
PROTECTED = """
import os, resource
open('/proc/self/oom_score_adj', 'w').write('321')
os.umask(0o077)
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[RealRunner]:
    """A runner whose process protects itself as a node does."""
    tmp_path.chmod(0o777)
    found = RealRunner(tmp_path, PROTECTED)
    yield found
    found.close()


def seen(runner: RealRunner, tmp_path: Path, **surroundings: Any) -> Any:
    """What a command has that is given these surroundings."""
    file = tmp_path / "seen"
    file.unlink(missing_ok=True)
    more = {"surroundings": surroundings} if surroundings else {}
    result = runner.run(1, "start", sys.executable, "-c", WHAT_IT_HAS, str(file), **more)
    assert result["succeeded"], result
    return json.loads(file.read_text())


def test_p8_19_a_command_inherits_nothing_that_protects_the_node(runner: RealRunner, tmp_path: Path) -> None:
    found = seen(runner, tmp_path)
    assert (found["score"], found["umask"], found["folder"], found["core"]) == ("0", 0o022, "/", 0)
    assert (found["nice"], found["policy"]) == (0, os.SCHED_OTHER)


def limits_of(text: str) -> dict[str, tuple[str, ...]]:
    """The soft and the hard limit of each line of /proc/PID/limits."""
    return {line[:26].strip(): tuple(line[26:68].split()) for line in text.splitlines()[1:]}


def may_raise_limits() -> bool:
    """Whether this process has CAP_SYS_RESOURCE, as root has but in a container."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> 24 & 1)


def lower(one: str, other: str) -> str:
    """The lower limit of two."""
    return min(one, other, key=lambda limit: float("inf") if limit == "unlimited" else int(limit))


def test_p8_19_limits_and_scheduling_are_the_same_whoever_started_the_daemon(tmp_path: Path) -> None:
    odd = RealRunner(tmp_path, ODD)
    try:
        found = seen(odd, tmp_path)
        half = str(int(Path("/proc/sys/kernel/threads-max").read_text()) // 2)
        expected = {
            "cpu time": ("unlimited", "unlimited"), "file size": ("unlimited", "unlimited"),
            "data size": ("unlimited", "unlimited"), "stack size": ("8388608", "unlimited"),
            "core file size": ("0", "unlimited"), "resident set": ("unlimited", "unlimited"),
            "processes": (half, half), "open files": ("1024", "524288"), "locked memory": ("8388608", "8388608"),
            "address space": ("unlimited", "unlimited"), "file locks": ("unlimited", "unlimited"),
            "pending signals": (half, half), "msgqueue size": ("819200", "819200"), "nice priority": ("0", "0"),
            "realtime priority": ("0", "0"), "realtime timeout": ("unlimited", "unlimited"),
        }  # fmt: skip
        if not may_raise_limits():  # then nothing goes above what there is
            most = limits_of(Path("/proc/self/limits").read_text())
            expected = {
                name: (lower(soft, most[f"Max {name}"][1]), lower(hard, most[f"Max {name}"][1]))
                for name, (soft, hard) in expected.items()
            }
        assert limits_of(found["limits"]) == {f"Max {name}": pair for name, pair in expected.items()}
        assert found["processors"] == len(os.sched_getaffinity(0))
        number = {"x86_64": "252", "aarch64": "31"}.get(os.uname().machine)
        if number is not None:
            asks = shell(f'"$@" > {tmp_path}/class')
            assert odd.run(2, "start", *asks, "sh", sys.executable, "-c", CLASS, number)["succeeded"]
            assert (tmp_path / "class").read_text() in ("0\n", "2\n"), "none, or what follows from the priority"
    finally:
        odd.close()


@needs_root
def test_p8_19_what_this_machine_lacks_is_no_exit_status_of_the_command(runner: RealRunner, tmp_path: Path) -> None:
    """Else `fatal_exit_status = [78]` would stop a service everywhere because one node has no such user."""
    result = runner.run(1, "start", "true", surroundings={"user": "no-such-user"}, final=[78], retries=1)
    assert result["status"] == -1
    assert "attempt 2 of 2: cannot be executed: this node does not have what" in result["detail"]


def test_p8_19_the_environment_is_that_of_the_machine_not_of_whoever_started_the_daemon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("MUSTER_NODE_HOME", "MUSTER_INCARNATION")
    before = base_environment("/home/n0", 7, names)
    for name, value in (("PATH", "/elsewhere"), ("HOME", "/nowhere"), ("LD_PRELOAD", "evil.so"), ("LC_ALL", "tr_TR")):
        monkeypatch.setenv(name, value)
    assert base_environment("/home/n0", 7, names) == before
    assert set(before) == {"PATH", "LANG", "HOME", "USER", "LOGNAME", "SHELL", *names}
    assert before["PATH"].startswith(DEFAULT_PATH)
    assert before["HOME"] == pwd.getpwuid(os.getuid()).pw_dir


@needs_root
def test_p8_19_user_folder_umask_limits_and_a_file_of_variables_are_as_defined(runner: RealRunner) -> None:
    with tempfile.TemporaryDirectory(prefix="muster-") as name:  # which another user can enter
        folder = Path(name)
        folder.chmod(0o777)
        file = folder / "variables"
        file.write_text('# a comment\nCOLOUR=red\nexport QUOTED="two words"\n\nMUSTER_GENERATION=99\n')
        variables = "$COLOUR|$QUOTED|$USER|$HOME|$MUSTER_GENERATION"
        words = f'echo "$(id -u) $(id -G)|$PWD|$(umask)|$(ulimit -n)|{variables}" > seen'
        surroundings = {
            "user": "nobody", "directory": name, "umask": 0o027, "environment_file": str(file),
            "limits": [["nofile", "99"], ["core", "0:unlimited"]],
        }  # fmt: skip
        result = runner.run(1, "start", *shell(words), surroundings=surroundings)
        assert result["succeeded"], result
        nobody = pwd.getpwnam("nobody")
        ids = f"{nobody.pw_uid} {nobody.pw_gid}"
        # nothing passes for what Muster says
        expected = [ids, name, "0027", "99", "red", "two words", "nobody", nobody.pw_dir, "1"]
        assert (folder / "seen").read_text().strip().split("|") == expected
        assert (folder / "seen").stat().st_mode & 0o777 == 0o640


@needs_root
@pytest.mark.parametrize(
    ("surroundings", "part"),
    [
        ({"user": "no-such-user"}, "user no-such-user: there is no such user on this node"),
        ({"group": "no-such-group"}, "group no-such-group: there is no such group"),
        ({"directory": "/no/such/folder"}, "working_directory /no/such/folder: No such file"),
        ({"environment_file": "/no/such/file"}, "environment_file /no/such/file: No such file"),
    ],
)
def test_p8_19_what_this_machine_lacks_is_said_and_nothing_runs(
    runner: RealRunner, tmp_path: Path, surroundings: dict[str, str], part: str
) -> None:
    result = runner.run(1, "start", *shell(f"touch {tmp_path}/ran"), surroundings=surroundings)
    assert not result["succeeded"] and part in result["detail"], result
    assert not (tmp_path / "ran").exists()


def test_p8_19_the_stop_signal_comes_first(runner: RealRunner, tmp_path: Path) -> None:
    told, ready = tmp_path / "told", tmp_path / "ready"
    catches = (
        f"trap 'echo quit > {told}; exit 0' QUIT; trap 'echo term > {told}; exit 0' TERM; touch {ready}; "
        "while :; do sleep 0.02; done"
    )
    assert runner.run(1, "start", *shell(catches), program=True, ready={"file": str(ready)})["succeeded"]
    assert runner.run(2, "stop", stop_signal="SIGQUIT")["succeeded"]
    assert told.read_text() == "quit\n"


@pytest.mark.parametrize(
    "surroundings",
    [{"user": 5}, {"umask": "022"}, {"limits": [["colour", "5"]]}, {"limits": [["nofile", "many"]]}, ["user"]],
)
def test_p8_19_surroundings_that_are_none_are_refused(runner: RealRunner, surroundings: Any) -> None:
    result = runner.run(1, "start", "true", surroundings=surroundings)
    assert not result["succeeded"] and "surroundings" in result["detail"]
