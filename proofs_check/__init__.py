"""Every claim of the theory as something that can be run, and refuted. ``python -m proofs_check``."""
