"""What the last handler of the event loop is told with an exception (P10.4)."""

CONNECTION = "connection"  # in the context of an exception: it came of one connection, and has ended only that
