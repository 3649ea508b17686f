"""What is wrong with what somebody has typed, or with a file that they named (SPEC 7.8)."""

from muster.client.errors import ClientError


class Mistaken(ClientError):
    """The command line, or a file named on it, is wrong; exit code 2."""
