"""Nothing for Python: what the other compiled modules share."""
