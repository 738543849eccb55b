"""``python -m proofs_check.mutants``."""

from proofs_check.mutants import app

if __name__ == "__main__":
    app()
