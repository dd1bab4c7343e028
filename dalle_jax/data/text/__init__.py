"""Captions and texts to token ids."""
