"""`python -m lab.vms`: see `command_line.py`."""

from lab.vms.command_line import main

if __name__ == "__main__":
    main()
