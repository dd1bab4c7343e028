"""Pictures in large files: tar, Parquet and ArrayRecord."""
