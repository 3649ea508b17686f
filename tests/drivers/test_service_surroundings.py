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
    "'core': resource.getrlimit(resource.RLIMIT_CORE)[0], 'policy': os.sched_getscheduler(0)}, open(sys.argv[1], 'w'))"
)
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
