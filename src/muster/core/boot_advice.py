"""What a person is told to type where a node is to be booted; whoever starts the nodes knows that command."""

SYSTEMD = "systemctl start musterd"  # on the node's own machine
VARIABLE = "MUSTER_BOOT_COMMAND"  # in the environment of `musterd`: another command
NAME = "{name}"  # in another command: stands for the node, and the command can be typed anywhere


def advice_for(node: str, command: str) -> str:
    """How to boot this one node."""
    return command.replace(NAME, node) if NAME in command else f"on {node}: {command}"


def advice_for_any(nodes: str, command: str) -> str:
    """How to boot one of several nodes, which are named in words: `n0 or n1`."""
    if NAME not in command:
        return f"boot {nodes}: there, {command}"
    return f"boot {nodes}: {command.replace(NAME, nodes if ' ' not in nodes else 'NAME')}"
