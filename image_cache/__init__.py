"""Images decoded once, mapped into memory, and cut into batches."""
