"""Measurements of Muster on real daemons, real stores, and in the simulator: `python bench --help`."""
