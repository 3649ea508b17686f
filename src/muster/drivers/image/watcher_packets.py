"""The packets between the runner and its built-in watcher: how long one is, and how much it names (SPEC 5.1)."""

PACKET_BYTES = 64 * 1024
MAXIMUM_NAMED = 16  # of what waits for a place (P8.12)
