"""Campaigns of damaged inputs and killed runs; see tools/soak.py."""
