"""What happened in a run: records, their summary, and pictures of them."""
