"""The live page at `/llumnix/`: its files, what it shows, and who watches."""
