"""Many LLM engines served as one, with live migration of running requests, on unmodified vLLM."""

__version__ = "0.1.0"
