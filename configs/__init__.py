"""Configurations of experiments, one file each; shipped with the package as `dalle_jax.configs`."""
