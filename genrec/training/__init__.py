"""One loop, one seam to the engine, checkpoints, hooks, meters and tracking."""
