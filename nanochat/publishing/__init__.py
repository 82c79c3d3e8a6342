"""Hugging Face folders and GGUF files: written, proved, read and repaired."""
