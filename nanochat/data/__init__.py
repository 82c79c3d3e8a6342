"""Text to token shards to packed rows. dataloader.py is its face."""
