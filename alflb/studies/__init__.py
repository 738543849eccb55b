"""The study and what runs it: cells, executors, resume, claims it could refute, figures and the report."""
