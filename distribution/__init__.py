"""What is handed to others: a source archive, a wheel and a Debian package, and the trial of the latter."""
