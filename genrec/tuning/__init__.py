"""Sweeps: many training runs that search for good settings (docs/tuning.md). Only modules named ray_* speak Ray."""
