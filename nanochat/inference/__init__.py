"""The parts of engine.py: who computes what, the cache, the fused model, the choice of a token."""
