"""Semantic ids: items as short tuples of codes, how they are made, and how they are decoded."""
