"""Judge parts of a frame: regions of interest, ignored pixels and tiles."""
