"""Pictures from bytes to pixels, and the check that they can be read."""
