"""A ranking language with a known best order, and a decoder of about a million weights that learns it from scratch: a
7B model's stand-in on two cores. analysis.md was written before the first run."""
