"""Serve bundles and packs over HTTP, and write model repositories for Triton."""
