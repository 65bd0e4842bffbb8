"""Networks over jagged batches; single-device code, without Ray and without DeepSpeed."""
