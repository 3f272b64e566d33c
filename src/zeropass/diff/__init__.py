"""What a fine-tune or an adapter changed, and what the change says."""
