"""Launching on Ray: processes of their own, so that nothing else needs Ray or waits for its import."""
