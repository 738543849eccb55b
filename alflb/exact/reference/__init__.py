"""Outside solvers of the same linear program: cvxpy, HiGHS and OR-Tools' min-cost flow."""
