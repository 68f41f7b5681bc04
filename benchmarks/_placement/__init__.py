"""What `placement.py` runs: its loads, an oracle to compare with, and what is measured of a run."""
