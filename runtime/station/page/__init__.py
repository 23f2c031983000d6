"""Serve the page of a station: the live picture, records, metrics and health."""
