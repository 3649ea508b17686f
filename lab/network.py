"""The lab's network: a namespace for each node, joined by a veth pair to a bridge in the lab's own, and its faults.

| fault | made with |
|---|---|
| cut | the bridge's port of the node is set down |
| one way | nftables on the bridge drops what comes from, or goes to, the node's port |
| split | nftables drops what goes between the ports of two groups of nodes |
| lossy | nftables drops so many frames of a hundred, by `numgen random`, in both directions |
| slow | netem delay on both ends of the pair; where the kernel has none, a tbf in which 500 bytes take as long |
"""

import subprocess

PREFIX = "muster-lab-"
PORT = 7700
_FRAME_BITS = 4000


def run(*words: str, input_text: str | None = None) -> None:
    """Run a tool. Raises `OSError` with what it says."""
    done = subprocess.run(words, capture_output=True, text=True, input=input_text, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")


class Network:
    """The nodes' network. All of it is in the sandbox, and ends with it.

    `number` tells several of them apart: each has a bridge, a subnet, and a device of that number in every node.
    """

    def __init__(self, names: list[str], number: int = 0, subnet: str = "10.77.0") -> None:
        self.names, self.number, self.subnet = names, number, subnet
        self.device, self._bridge = f"eth{number}", f"lab{number}"
        self._table = f"bridge muster_lab{number}"
        self._cut: set[str] = set()
        self._mute: set[str] = set()
        self._deaf: set[str] = set()
        self._lossy: dict[str, int] = {}
        self._apart: set[frozenset[str]] = set()
        self._slow: set[str] = set()
        self.delays_by = "tbf"

    def make(self) -> None:
        """Bridge and pairs; the nodes' namespaces with the first network. Raises `OSError`."""
        run("ip", "link", "add", self._bridge, "type", "bridge", "forward_delay", "0", "stp_state", "0")
        run("ip", "link", "set", self._bridge, "up")
        for name in self.names:
            space, port = namespace(name), self._port(name)
            if not self.number:
                run("ip", "netns", "add", space)
                run("ip", "-n", space, "link", "set", "lo", "up")
            run("ip", "link", "add", port, "type", "veth", "peer", "name", self.device, "netns", space)
            run("ip", "link", "set", port, "master", self._bridge, "up")
            run("ip", "-n", space, "addr", "add", f"{self.host(name)}/24", "dev", self.device)
            run("ip", "-n", space, "link", "set", self.device, "up")
        self.delays_by = "netem" if self._has_netem() else "tbf"

    def remove(self) -> None:
        """Take everything apart, for the next network in the same sandbox."""
        for name in self.names:
            run("ip", "link", "del", self._port(name))
            run("ip", "netns", "del", namespace(name))
        run("ip", "link", "del", self._bridge)

    def _has_netem(self) -> bool:
        port = self._port(self.names[0])
        try:
            run("tc", "qdisc", "add", "dev", port, "root", "netem", "delay", "1ms")
        except OSError:
            return False
        run("tc", "qdisc", "del", "dev", port, "root")
        return True

    def address(self, name: str) -> str:
        """Where a node listens."""
        return f"{self.host(name)}:{PORT}"

    def host(self, name: str) -> str:
        """A node's address without its port."""
        return f"{self.subnet}.{self.names.index(name) + 1}"

    def _port(self, name: str) -> str:
        return f"port{self.number}-{self.names.index(name)}"

    # ---- faults --------------------------------------------------------------------------------------------------

    def cut(self, name: str) -> None:
        """The node's cable is out."""
        self._cut.add(name)
        run("ip", "link", "set", self._port(name), "down")

    def join(self, name: str) -> None:
        """The node's cable is in again."""
        self._cut.discard(name)
        run("ip", "link", "set", self._port(name), "up")

    def one_way(self, name: str, direction: str, *, broken: bool = True) -> None:
        """Nothing comes `from` the node, or goes `to` it."""
        group = {"from": self._mute, "to": self._deaf}[direction]
        (group.add if broken else group.discard)(name)
        self._write_rules()

    def lossy(self, name: str, percent: int) -> None:
        """So many frames of a hundred are lost in each direction; 0: none."""
        self._lossy[name] = percent
        self._write_rules()

    def split(self, group: list[str], *, broken: bool = True) -> None:
        """The nodes of the group and the others do not hear each other."""
        pairs = {frozenset((one, other)) for one in group for other in self.names if other not in group}
        self._apart = self._apart | pairs if broken else self._apart - pairs
        self._write_rules()

    def slow(self, name: str, delay_ms: int) -> None:
        """Frames take so much longer in each direction; 0: no longer."""
        in_node = ("ip", "netns", "exec", namespace(name))
        for where, device in (((), self._port(name)), (in_node, self.device)):
            if not delay_ms:
                if name in self._slow:
                    run(*where, "tc", "qdisc", "del", "dev", device, "root")
            else:
                run(*where, "tc", "qdisc", "replace", "dev", device, "root", *self._delay(delay_ms))
        (self._slow.add if delay_ms else self._slow.discard)(name)

    def _delay(self, delay_ms: int) -> list[str]:
        if self.delays_by == "netem":
            return ["netem", "delay", f"{delay_ms}ms", f"{max(1, delay_ms // 10)}ms"]
        return ["tbf", "rate", f"{_FRAME_BITS // delay_ms}kbit", "burst", "1600", "latency", "2s"]

    def heal(self) -> None:
        """Every cable in, nothing dropped, nothing slow."""
        for group in (self._mute, self._deaf, self._apart, self._lossy):
            group.clear()
        self._write_rules()
        for name in self.names:
            if name in self._cut:
                self.join(name)
            self.slow(name, 0)

    def _write_rules(self) -> None:
        """All rules at once: nft carries a file out as one change."""
        rules = [f'iifname "{self._port(name)}" drop' for name in sorted(self._mute)]
        rules += [f'oifname "{self._port(name)}" drop' for name in sorted(self._deaf)]
        for pair in self._apart:
            one, other = (self._port(name) for name in sorted(pair))
            rules += [f'iifname "{one}" oifname "{other}" drop', f'iifname "{other}" oifname "{one}" drop']
        for name, percent in self._lossy.items():
            if percent:
                port = self._port(name)
                rules += [f'{end} "{port}" numgen random mod 100 < {percent} drop' for end in ("iifname", "oifname")]
        listed = "\n".join(f"    {rule}" for rule in rules)
        chain = f"  chain forward {{\n    type filter hook forward priority 0;\n{listed}\n  }}"
        table = self._table
        text = f"table {table}\ndelete table {table}\ntable {table} {{\n{chain}\n}}\n"
        run("nft", "-f", "-", input_text=text)


def namespace(name: str) -> str:
    """The network namespace of a node, as `ip netns` lists it inside the sandbox."""
    return f"{PREFIX}{name}"
