"""Real daemons: nodes are added, enrolled, renewed and removed while the cluster runs (SPEC 1.1, 1.6).

The rules are proved in test_rules_nodes.py and test_trust.py (P1.1 to P1.7); here they are met from the command line.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dev_cluster import DevCluster
from muster.dev.development_cluster import free_addresses, open_cluster
from muster.dev.node_processes import COOKIE
from muster.drivers.certificates.certificates import create_authority, issue
from muster.drivers.interconnect.channel import VISITOR_GREETING

SERVICE = """
[[service]]
name = "web"
start_command = "true"
allowable_nodes = ["*"]
"""


class Machine:
    """A machine that is to become a node of a development cluster's store, by hand."""

    def __init__(self, cluster: DevCluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.home = cluster.directory / "nodes" / name
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *options: str) -> list[str]:
        """The command line of `muster enrol`."""
        store = str(self.cluster.directory / "store")
        words = ["enrol", "--store", store, "--name", self.name, "--home", str(self.home), *options]
        return [sys.executable, "-m", "muster.ui.command_line", *words]

    def enrol(self, token: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run it, with the token on standard input."""
        return subprocess.run(
            self.command(*options), input=token, capture_output=True, text=True, timeout=90, check=False
        )

    def start(self, token: str) -> None:
        """One command and a token: enrol, and become the node's guard in the same process."""
        process = self._run(self.command("--start", "--token-file", "-"))
        assert process.stdin is not None
        process.stdin.write(token.encode() + b"\n")
        process.stdin.close()

    def boot(self, *options: str) -> None:
        """Run `musterd` here."""
        store = str(self.cluster.directory / "store")
        words = ["--store", store, "--node", self.name, "--home", str(self.home), *options]
        process = self._run([sys.executable, "-m", "muster.daemon.main", *words])
        assert process.stdin is not None
        process.stdin.close()

    def _run(self, command: list[str]) -> "subprocess.Popen[bytes]":
        environment = os.environ | {COOKIE: str(self.home)}
        with (self.cluster.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        return self.process

    def log(self) -> str:
        """What it has said."""
        return (self.cluster.directory / f"{self.name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End the node: its guard's death takes everything with it."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait(30)


def add(cluster: DevCluster, name: str, *options: str) -> str:
    """Configure a node on a free port; its token."""
    made = cluster.json("node", "add", name, free_addresses(1)[0], *options)
    return str(made["token"])


def nodes(cluster: DevCluster) -> Any:
    """Every configured node."""
    return cluster.json("node", "list")["nodes"]


def certificate_of(cluster: DevCluster, name: str) -> str:
    """The fingerprint of a node's certificate on record."""
    return str(nodes(cluster)[name]["certificate"]["fingerprint"])


def until(what: str, probe: Any, within_s: float = 60.0) -> Any:
    """The first truthy value of `probe`."""
    deadline = time.monotonic() + within_s
    while not (value := probe()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.1)
    return value


def is_joined(cluster: DevCluster, name: str) -> bool:
    return bool(cluster.status()["nodes"][name]["state"] == "joined")


def test_p1_4_a_fresh_machine_becomes_a_node_with_one_command_and_a_token_and_takes_services(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    dev_cluster.up(2)
    token = add(dev_cluster, "fresh")
    machine = Machine(dev_cluster, "fresh")
    try:
        machine.start(token)
        until("it is joined", lambda: is_joined(dev_cluster, "fresh"))
        services = tmp_path / "services.toml"
        services.write_text(SERVICE)
        dev_cluster.succeed("apply", str(services))
        until("it runs", lambda: dev_cluster.status()["services"]["web"]["state"] == "registered")
        if dev_cluster.status()["services"]["web"]["node"] != "fresh":
            dev_cluster.succeed("service", "transfer", "web", "fresh")
        until(
            "the fresh node has it", lambda: dev_cluster.status()["services"]["web"]["nodes"]["fresh"] == "registered"
        )
        assert until("it was given the authority's key", lambda: list((machine.home / "authority-keys").glob("*.pem")))
        store = (dev_cluster.directory / "store").read_bytes()
        said = "".join(path.read_text(errors="replace") for path in dev_cluster.directory.rglob("*log"))
        key = (machine.home / "key.pem").read_text().splitlines()[1]
        for secret in (token, key):
            assert secret.encode() not in store
            assert secret not in said
        # the token has been used: another machine gets nowhere with it
        thief = Machine(dev_cluster, "fresh")
        thief.home = tmp_path / "thief"
        refused = thief.enrol(token)
        assert refused.returncode == 1
        assert "no token is open" in refused.stderr and "muster node token fresh" in refused.stderr
    finally:
        machine.close()


def test_p1_4_wrong_expired_and_replaced_tokens_are_refused_and_say_what_helps(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    dev_cluster.up(1)
    short = add(dev_cluster, "n1", "--expires", "1s")
    machine = Machine(dev_cluster, "n1")
    refused = machine.enrol("x" * 43, "--wait", "2")
    assert (refused.returncode, "not the token of n1" in refused.stderr) == (1, True), refused.stderr
    assert "muster node token n1" in refused.stderr
    time.sleep(max(0.0, 2 - time.time() % 1))  # its end is a whole second
    refused = machine.enrol(short, "--wait", "2")
    assert (refused.returncode, "expired" in refused.stderr) == (1, True), refused.stderr
    assert machine.enrol("two words").returncode == 2
    unknown = Machine(dev_cluster, "n9").enrol(short)
    assert unknown.returncode == 2 and "muster node add n9" in unknown.stderr
    boot = subprocess.run(
        [sys.executable, "-m", "muster.daemon.main", "--store", str(dev_cluster.directory / "store"), "--node", "n1",
         "--home", str(machine.home)], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert boot.returncode == 3 and "muster enrol" in boot.stderr
    token = str(dev_cluster.json("node", "token", "n1")["token"])
    done = machine.enrol(token)
    assert done.returncode == 0, done.stderr
    again = machine.enrol("")  # asks for no token any more
    assert again.returncode == 0 and "already" in again.stderr
    assert {path.name for path in machine.home.iterdir()} == {"key.pem", "certificate.pem"}
    stranger = Machine(dev_cluster, "n1")
    stranger.home = tmp_path / "elsewhere"
    late = stranger.enrol(token)
    assert (late.returncode, "no token is open for n1" in late.stderr) == (1, True)
    assert not stranger.home.exists(), "what is refused leaves no key behind"
    refused = Machine(dev_cluster, "n0").enrol(token)
    assert refused.returncode == 0 and "already" in refused.stderr, "its own home has the key on record"
    running = dev_cluster.run("node", "token", "n0")
    assert running.returncode == 1 and "only an inactive node" in running.stderr


def test_p1_4_a_stranger_at_the_door_is_refused_and_costs_nothing(dev_cluster: DevCluster) -> None:
    dev_cluster.up(2)
    (address,) = nodes(dev_cluster)["n0"]["addresses"]
    host, _, port = address.rpartition(":")
    for words in (b"MUSTER", b"MUSTER-ENROL 9\n", b"M" * 100_000):
        with socket.create_connection((host, int(port)), timeout=10) as stranger:
            stranger.sendall(words)
            stranger.shutdown(socket.SHUT_WR)
            assert b"go" not in _rest(stranger)
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    settings.check_hostname, settings.verify_mode = False, ssl.CERT_NONE
    for line in (
        b"nonsense\n",
        json.dumps({"cluster": "x", "node": "n0", "token": "t", "request": "r"}).encode() + b"\n",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as plain:
            plain.sendall(VISITOR_GREETING)
            assert plain.recv(3) == b"go\n"
            with settings.wrap_socket(plain) as visitor:
                visitor.sendall(line)
                assert json.loads(_rest(visitor))["ok"] is False
    assert all(node["state"] == "joined" and node["link"] for node in dev_cluster.status()["nodes"].values())


def _rest(source: socket.socket) -> bytes:
    collected = b""
    try:
        while data := source.recv(65_536):
            collected += data
    except ConnectionResetError:
        pass
    return collected


def test_p1_3_a_removed_nodes_key_opens_nothing_and_its_slot_is_free(dev_cluster: DevCluster) -> None:
    dev_cluster.up(2)
    dev_cluster.succeed("dev", "add")
    cluster = open_cluster(dev_cluster.directory)
    refused = dev_cluster.run("node", "remove", "n2", "--yes")
    assert refused.returncode == 1 and "muster node leave n2" in refused.stderr
    home = cluster.home("n2")
    dev_cluster.succeed("dev", "leave", "n2")
    assert "would remove n2" in dev_cluster.succeed("node", "remove", "n2")
    assert "n2" in nodes(dev_cluster)
    dev_cluster.succeed("node", "remove", "n2", "--yes")
    assert "n2" not in nodes(dev_cluster)
    boot = subprocess.run(
        [sys.executable, "-m", "muster.daemon.main", "--store", str(dev_cluster.directory / "store"), "--node", "n2",
         "--home", str(home)], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert boot.returncode == 3 and "has no node 'n2'" in boot.stderr
    token = add(dev_cluster, "n2")  # another node of the same name, perhaps on another machine
    machine = Machine(dev_cluster, "n2")
    boot = subprocess.run(
        [sys.executable, "-m", "muster.daemon.main", "--store", str(dev_cluster.directory / "store"), "--node", "n2",
         "--home", str(home)], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert boot.returncode == 3 and "muster enrol" in boot.stderr, "the old key is of another generation"
    try:
        machine.start(token)
        until("the new n2 is joined", lambda: is_joined(dev_cluster, "n2"))
    finally:
        machine.close()


@pytest.mark.long
def test_p1_6_certificates_are_renewed_in_place_before_they_end(dev_cluster: DevCluster) -> None:
    lifetime_s = 30
    dev_cluster.up(2, "--certificate-lifetime", f"{lifetime_s}s")
    began = time.monotonic()
    first = {name: certificate_of(dev_cluster, name) for name in ("n0", "n1")}
    before = {name: node["incarnation"] for name, node in dev_cluster.status()["nodes"].items()}
    until(
        "both are renewed",
        lambda: all(certificate_of(dev_cluster, name) != first[name] for name in first),
        within_s=3 * lifetime_s,
    )
    while time.monotonic() < began + lifetime_s + 2:  # beyond the end of the first ones
        time.sleep(0.2)
    dev_cluster.succeed("dev", "kill", "n1")  # new connections need a certificate that is valid now
    dev_cluster.succeed("dev", "boot", "n1")
    after = dev_cluster.status()["nodes"]
    assert after["n0"]["incarnation"] == before["n0"]
    assert all(node["state"] == "joined" and node["link"] for node in after.values())


@pytest.mark.long
def test_p1_6_an_expired_node_is_told_the_way_back_and_takes_it(dev_cluster: DevCluster) -> None:
    """By a new token while others run; by the authority's key in its home where the whole cluster slept too long."""
    lifetime_s = 20
    dev_cluster.up(2, "--certificate-lifetime", f"{lifetime_s}s")
    dev_cluster.succeed("dev", "leave", "n1")
    time.sleep(lifetime_s + 1)
    store, home = dev_cluster.directory / "store", dev_cluster.directory / "nodes" / "n1"
    boot = [sys.executable, "-m", "muster.daemon.main", "--store", str(store), "--node", "n1", "--home", str(home)]
    refused = subprocess.run(boot, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 3
    assert "expired" in refused.stderr and "muster node token n1" in refused.stderr
    assert any("n1 ended on" in warning for warning in dev_cluster.status()["warnings"])
    token = str(dev_cluster.json("node", "token", "n1")["token"])
    assert Machine(dev_cluster, "n1").enrol(token).returncode == 0
    dev_cluster.succeed("dev", "boot", "n1")
    dev_cluster.succeed("dev", "down", "--keep")
    time.sleep(lifetime_s + 1)
    refused = subprocess.run(boot, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 3 and "--renew-expired" in refused.stderr
    machines = [Machine(dev_cluster, name) for name in ("n0", "n1")]
    try:
        for machine in machines:
            machine.boot("--renew-expired")
        dev_cluster.wait_for(
            "both are joined", lambda status: all(node["state"] == "joined" for node in status["nodes"].values())
        )
        until("their new certificates are on record", lambda: not dev_cluster.status()["warnings"])
    finally:
        for machine in machines:
            machine.close()


@pytest.mark.parametrize("victim", ["master", pytest.param("other", marks=pytest.mark.long)])
def test_p1_7_the_authority_is_replaced_while_a_node_dies_in_the_middle(dev_cluster: DevCluster, victim: str) -> None:
    dev_cluster.up(3)
    shown = dev_cluster.json("authority", "show")
    old = shown["present"][0]["fingerprint"]
    assert "--yes does it" in dev_cluster.succeed("authority", "rotate")
    assert dev_cluster.json("authority", "show")["incoming"] is None
    master = dev_cluster.status()["master"]
    asked, other = [name for name in ("n0", "n1", "n2") if name != master]
    dying = master if victim == "master" else other
    # stopped, it holds the first step up; then it dies
    dev_cluster.succeed("dev", "hang", dying)
    begun = dev_cluster.run("authority", "rotate", "--yes", "--no-wait", "--node", asked)
    assert begun.returncode == 0, begun.stderr
    dev_cluster.succeed("dev", "kill", dying)
    until("the old authority is gone", lambda: _is_replaced(dev_cluster, old))
    dev_cluster.succeed("dev", "boot", dying)
    dev_cluster.wait_for("all are joined", lambda found: all(n["state"] == "joined" for n in found["nodes"].values()))
    # it asks the others for the new authority's key once it is connected with them: until then its status says so
    until("nobody lacks the key", lambda: not any(dev_cluster.status(name)["warnings"] for name in ("n0", "n1", "n2")))
    keys = dev_cluster.directory / "nodes" / dying / "authority-keys" / f"{old}.pem"
    until("the old key is deleted there, too", lambda: not keys.exists())
    # strangers: what the old authority issues is worth nothing, and the new one enrols
    dev_cluster.succeed("dev", "add")


def _is_replaced(cluster: DevCluster, old: str) -> bool:
    found = cluster.json("authority", "show")
    return found["incoming"] is None and found["present"][0]["fingerprint"] != old


def test_p1_1_a_certificate_of_the_right_authority_for_another_key_is_refused(
    dev_cluster: DevCluster, tmp_path: Path
) -> None:
    """Who holds the authority's key and the store still cannot pass for a node: the key on record is another."""
    dev_cluster.up(2)
    cluster = open_cluster(dev_cluster.directory)
    identity = dev_cluster.status()["cluster_identity"]
    folder = cluster.directory / "nodes" / "authority"
    authority = create_authority("x", identity)._replace(
        certificate_pem=(folder / "certificate.pem").read_text(), key_pem=(folder / "key.pem").read_text()
    )
    forged = issue(authority, 1, "n1", identity)
    for name, text in (("c.pem", forged.certificate_pem), ("k.pem", forged.key_pem)):
        (tmp_path / name).write_text(text)
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    settings.check_hostname, settings.verify_mode = False, ssl.CERT_NONE
    settings.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    (address,) = nodes(dev_cluster)["n0"]["addresses"]
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain, settings.wrap_socket(plain) as intruder:
        assert _rest(intruder) == b"", "it is told nothing, not even Hello"
    until("it is told to people", lambda: "on record" in cluster.log_tail("n0", 200))
