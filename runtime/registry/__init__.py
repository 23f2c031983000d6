"""Sign bundles, push and pull them, and roll them out to stations."""
