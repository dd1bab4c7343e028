"""Data sets in the layout of TFDS."""
