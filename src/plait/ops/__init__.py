"""Bricks that methods are built from. Each works on float32 (or float64) pieces and leaves its inputs alone."""
