"""What init hands to the daemon: the names of environment variables, which the daemon reads without init's code."""

GUARD_FD, RUNNER_FD, INIT_FD, INCARNATION, NODE_HOME, IMAGE = (
    "MUSTER_GUARD_FD",
    "MUSTER_RUNNER_FD",
    "MUSTER_INIT_FD",
    "MUSTER_INCARNATION",
    "MUSTER_NODE_HOME",
    "MUSTER_IMAGE",
)
