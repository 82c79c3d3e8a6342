"""What a model may run. sandbox.py is the face."""
