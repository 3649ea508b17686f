"""`python -m muster.drivers.signing`: an entry over `drivers/certificates/signing.py` (docs/ARCHITECTURE.md)."""

from muster.drivers.certificates.signing import main

if __name__ == "__main__":
    main()
