"""Models, and merges that were not written, in the formats of other programs."""
