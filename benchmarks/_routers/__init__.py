"""Parts of `routers.py`: whom it compares, what it asks of them, and what came of it."""
