"""Judge archives of images into Parquet files, and compare two such files."""
