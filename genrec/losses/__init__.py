"""Training objectives over hidden states and the item table."""
