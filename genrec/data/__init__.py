"""From interaction logs to batches: schema, sources, prepare, manifest, plan, packing, stream, batch."""
