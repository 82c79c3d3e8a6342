"""Tasks (tasks.py) and the CORE metric (core.py)."""
