"""A ladder of model sizes: what each rung can resolve, and what its runs say once they are trained.

`experiments.train_moe` trains; this package reads what it left. ``python -m experiments.ladder --help`` lists the
studies, docs/validation has their results.
"""
