"""Figures of a run, as a page and a model card. report.py is the face."""
