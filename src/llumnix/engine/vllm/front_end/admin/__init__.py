"""The admin routes: what they are, what they answer, and who may ask."""
