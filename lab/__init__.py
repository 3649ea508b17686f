"""The network lab: real daemons in network namespaces under real faults, judged by the simulator's checkers."""
