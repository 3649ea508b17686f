"""The machines' two networks: the interconnect, and the one that their management boards and clients are in.

Each is a bridge in the lab's network namespace, with a tap device for each machine. A cable is pulled by QEMU, so the
machine's card sees it. In the second, the lab itself has an address: there its board answers.
"""

from lab.network import run

PORT = 7700
BOARD_HOST = "10.78.0.254"
CARDS = ("interconnect", "management")  # eth0, eth1


def host(number: int, card: int = 0) -> str:
    """The address of machine `number`, from 1, on a card."""
    return f"10.{77 + card}.0.{number}"


def tap(number: int, card: int) -> str:
    """The lab's end of a cable."""
    return f"tap{number}-{card}"


def make(machines: int) -> None:
    """All of it, in the network namespace that this process is in. Raises `OSError`."""
    for card, name in enumerate(CARDS):
        run("ip", "link", "add", name, "type", "bridge", "forward_delay", "0", "stp_state", "0")
        run("ip", "link", "set", name, "up")
        for number in range(1, machines + 1):
            run("ip", "tuntap", "add", "dev", tap(number, card), "mode", "tap")
            run("ip", "link", "set", tap(number, card), "master", name, "up")
    run("ip", "address", "add", f"{BOARD_HOST}/24", "dev", CARDS[1])
