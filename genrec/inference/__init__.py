"""Recommendations from an export: in Python, and for all users at once."""
