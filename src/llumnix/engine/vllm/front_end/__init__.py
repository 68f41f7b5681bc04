"""The front end: vLLM's own OpenAI server over our engine client, plus the admin routes."""
