"""Bad input when a node boots: its store, name, keys, certificate and address (SPEC 7.8)."""

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bad_input import DEADLINE_S, SMALL, clear, musterd, refused
from dev_cluster import CommandLine
from muster.daemon import main
from muster.daemon.main import WAIT_S, ClockNotSet
from muster.dev.development_cluster import create
from muster.drivers.certificates import certificates
from muster.drivers.certificates.certificates import CertificateRefused
from muster.drivers.store.disk.geometry import BLOCK_BYTES, COPIES, choose_header, encode_header
from muster.drivers.store.failures import StoreFailed

# ---- the store and the keys, when a node boots -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store `store` of a cluster that does not run, with the keys of n0 and n1 in `keys`; their directory."""
    base = tmp_path_factory.mktemp("made")
    nodes = f"n0=127.0.0.1:{free_port()},n1=127.0.0.1:{free_port()}"
    arguments = ("--name", "c", "--nodes", nodes, "--keys", str(base / "keys"), *SMALL)
    CommandLine().succeed("init", str(base / "store"), *arguments)
    return base


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _truncated(store: bytes) -> bytes:
    return store[: len(store) // 2]


def _newer(store: bytes) -> bytes:
    header = choose_header(store[: COPIES * BLOCK_BYTES]).header
    assert header is not None
    copies = b"".join(encode_header(header._replace(version=99), copy) for copy in range(COPIES))
    return copies + store[COPIES * BLOCK_BYTES :]


def _half_written(store: bytes) -> bytes:
    header = choose_header(store[: COPIES * BLOCK_BYTES]).header
    assert header is not None
    incomplete = header._replace(complete=False)
    copies = b"".join(encode_header(incomplete, copy) for copy in range(COPIES))
    return copies + store[COPIES * BLOCK_BYTES :]


def _without_claims(store: bytes) -> bytes:
    header = choose_header(store[: COPIES * BLOCK_BYTES]).header
    assert header is not None
    start = COPIES * BLOCK_BYTES
    return store[:start] + b"\xff" * header.strip_bytes + store[start + header.strip_bytes :]


@pytest.mark.parametrize(
    ("change", "what", "advice"),
    [
        (lambda _: b"", "too small", "muster init"),
        (lambda store: bytes(len(store)), "is blank", "muster init"),
        (lambda store: b"precious" * (len(store) // 8), "something else than a Muster store", "check the path"),
        (_truncated, "it was cut off", "backup"),
        (_half_written, "half written", "--force"),
        (_newer, "disk format 99", "newer release"),
        (_without_claims, "no claim register is readable", "muster store check"),
    ],
    ids=["empty", "blank", "foreign", "cut off", "half written", "newer", "damaged"],
)
def test_a_store_that_cannot_be_used_is_named_and_left_as_it_is(
    made: Path, tmp_path: Path, change: Callable[[bytes], bytes], what: str, advice: str
) -> None:
    path = tmp_path / "store"
    data = change((made / "store").read_bytes())
    path.write_bytes(data)
    line = refused(musterd(path, "n0", made / "keys" / "n0"))
    assert str(path) in line
    assert what in line
    assert advice in line
    assert path.read_bytes() == data


def test_what_is_no_file_is_named(made: Path, tmp_path: Path) -> None:
    assert "neither a regular file" in refused(musterd(tmp_path, "n0", made / "keys" / "n0"))


def test_p11_6_a_store_that_is_not_there_yet_is_waited_for_and_told_once_and_a_signal_ends_that(
    made: Path, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(told))
        manager.settimeout(DEADLINE_S)
        words = ["--store", str(tmp_path / "nowhere"), "--node", "n0", "--home", str(made / "keys" / "n0")]
        command = [sys.executable, "-m", "muster.daemon.main", *words]
        environment = {**os.environ, "NOTIFY_SOCKET": str(told)}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as waiting:
            status = manager.recv(4096).decode()
            time.sleep(3 * WAIT_S)
            assert waiting.poll() is None
            waiting.terminate()
            _, said = waiting.communicate(timeout=DEADLINE_S)
    assert waiting.returncode == -signal.SIGTERM
    assert status.startswith("STATUS=waiting: store") and "does not exist" in status
    assert len(said.splitlines()) == 1 and "musterd: waiting: store" in said


def test_p11_6_a_certificate_that_is_not_valid_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | list[str]] = [ClockNotSet("early"), ClockNotSet("early"), ["guard"]]

    def prepare(*_words: str) -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(main, "prepare", prepare)
    monkeypatch.setattr(main, "WAIT_S", 0)
    assert main.wait_and_prepare("store", "n0", "home") == ["guard"]
    permanent = StoreFailed("for good")
    answers.append(permanent)
    with pytest.raises(StoreFailed):
        main.wait_and_prepare("store", "n0", "home")


@pytest.mark.parametrize(("now_s", "is_waited_for"), [(0.0, True), (4e9, False)])
def test_p11_6_only_a_certificate_that_is_not_valid_yet_may_become_valid(
    now_s: float, is_waited_for: bool, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> str:
        raise CertificateRefused("it is not valid")

    monkeypatch.setattr(main, "own_certificate", refuse)
    monkeypatch.setattr("muster.daemon.trust.trust.time.time", lambda: now_s)
    with pytest.raises(CertificateRefused, match="it is not valid") as caught:
        main.prepare(str(made / "store"), "n0", str(made / "keys" / "n0"))
    assert isinstance(caught.value, ClockNotSet) is is_waited_for


def test_a_store_that_takes_no_writes_lets_no_node_start(made: Path, tmp_path: Path) -> None:
    import fcntl

    # a sealed file: read by everybody, written by nobody, root included
    handle = os.memfd_create("store", os.MFD_ALLOW_SEALING)
    try:
        os.write(handle, (made / "store").read_bytes())
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        home = tmp_path / "home"
        shutil.copytree(made / "keys" / "n0", home)
        ended = musterd(f"/proc/{os.getpid()}/fd/{handle}", "n0", home)
    finally:
        os.close(handle)
    assert ended.returncode in (3, 75)
    line = refused(ended, ended.returncode)
    assert "cannot" in line
    assert "store" in line
    assert not (home / "guard.json").exists()


def test_a_store_that_does_not_fit_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    limits = (256 * 1024, 256 * 1024)
    command = [sys.executable, "-m", "muster.ui.command_line", "init", "store", "--name", "c"]
    command += ["--nodes", "n0=127.0.0.1:7700", *SMALL]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )  # fmt: skip
    assert "smaller size" in clear(ended, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_configured_is_refused_with_those_that_are(made: Path) -> None:
    for name in ("n9", "", "../n0", "n0\n", "ü" * 300):
        line = refused(musterd(made / "store", name, made / "keys" / "n0"))
        assert "it has n0, n1" in line


def test_keys_that_do_not_fit_are_refused_with_what_to_do(made: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    store = made / "store"
    assert "no such directory" in refused(musterd(store, "n0", home))
    home.mkdir()
    assert "put the node's key there" in refused(musterd(store, "n0", home))
    key = home / "key.pem"
    shutil.copy(made / "keys" / "n1" / "key.pem", key)
    line = refused(musterd(store, "n0", home))
    assert "key of another certificate" in line
    assert "_ssl" not in line
    shutil.copy(made / "keys" / "n0" / "key.pem", key)
    key.chmod(0o640)
    assert f"chmod 600 {key}" in refused(musterd(store, "n0", home))
    key.chmod(0o600)
    key.write_text("this is no key")
    assert "one of them cannot be read" in refused(musterd(store, "n0", home))


def test_an_expired_certificate_is_refused_at_the_boot_of_its_own_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue = certificates.issue
    past = datetime.now(UTC) - timedelta(days=1)

    def expired(
        authority: certificates.Credentials, node: int, name: str, cluster: str, *, not_after: datetime
    ) -> certificates.Credentials:
        assert not_after > past
        return issue(authority, node, name, cluster, not_before=past - timedelta(days=1), not_after=past)

    monkeypatch.setattr(certificates, "issue", expired)
    cluster = create(tmp_path / "cluster", 1, "fast")
    line = refused(musterd(cluster.directory / "store", "n0", cluster.home("n0")))
    assert "expired" in line
    assert "muster node token n0" in line
    assert "--renew-expired" in line


def test_an_address_in_use_is_named_with_its_holder(made: Path) -> None:
    shown = CommandLine().json("store", "show", str(made / "store"))
    assert shown["cluster"] == "c"
    # the address stands in the database only: let the daemon say which it is
    with contextlib.ExitStack() as held:
        nodes = f"n0=127.0.0.1:{held.enter_context(socket.create_server(('127.0.0.1', 0))).getsockname()[1]}"
        path = made / "second"
        CommandLine().succeed("init", str(path), "--name", "d", "--nodes", nodes, "--keys", f"{path}-keys", *SMALL)
        line = refused(musterd(path, "n0", f"{path}-keys/n0"), 75)
    assert f"in use by process {os.getpid()} (" in line
    assert "another address" in line
