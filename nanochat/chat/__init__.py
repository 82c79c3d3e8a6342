"""Talking to a model: server.py for the web, terminal.py for the terminal."""
