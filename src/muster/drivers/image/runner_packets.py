"""The packets between daemon and runner: how long one is, and what both ask of a send buffer (SPEC 5.1)."""

PACKET_BYTES = 64 * 1024
SEND_BUFFER_BYTES = 4 * PACKET_BYTES
