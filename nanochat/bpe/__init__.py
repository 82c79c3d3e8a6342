"""Byte-level BPE: text to ids. tokenizer.py is its face."""
