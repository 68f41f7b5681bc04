"""An engine by arithmetic: batch, queue and blocks as vLLM keeps them, and steps that take the time of a profile."""
