"""A training stage around the loop of train.py."""
