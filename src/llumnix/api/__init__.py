"""The admin API of a running server, `/llumnix/v1/…`: what is sent and answered (bodies.py), and where (routes.py)."""
