"""Pictures of one's own, in folders named after their classes."""
