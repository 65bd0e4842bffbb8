"""Before a run starts: its arithmetic, its memory, its time, and the engine and micro-batches that suit them."""
