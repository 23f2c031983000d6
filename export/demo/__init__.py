"""Train a small detector on photographs that come with it, and run every step up to a report."""
