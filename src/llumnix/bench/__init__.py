"""Load on a running server, and records of how it answered."""
