"""What turns requests into tokens: the seam to an engine, and the engines behind it."""
