"""Take frames in: read pictures, preprocess them, and recognise frames that are unlike the good ones."""
