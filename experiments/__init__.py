"""One file for each figure or table. ``python -m experiments list``."""
