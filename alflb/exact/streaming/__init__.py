r"""The pooled problem of many batches, between two certified bounds, in memory that does not grow with the batches.

N batches of T tokens make one assignment problem of N T tokens, but its dual

.. math:: D(p) = \sum_{\text{batches}} \sum_i S_K(\gamma_i + p) - \langle L, p \rangle

has only E unknowns, and value, loads and everything else the solver wants are sums over batches. So the batches are
read a few times, and each time leave a summary of E^2 numbers (times a constant) behind:

1. **Survey** (`passes.SurveyTask`): sizes, and a uniform sample of 1024 E rows, at most 2^16. The exact optimum of the
   sample (`solve_exact`) is the first bias.
2. **Route** (`passes.RoutingTask`): loads and D at the bias, for each ordered pair of experts a histogram of the
   margins at which tokens would swap one for the other, and the 64 E rows closest to a tie.
3. **Repair** (`repair`): the cheapest swaps that balance the loads, a convex flow on the graph of experts, give a
   feasible assignment, hence a lower bound, and its dual potentials a better bias. The closest rows, assigned anew
   by `solve_exact`, give another of both. If the bounds are not within the tolerance, 2 is done again (`search`).

Where margins have a density step 3 is a Newton step whose Hessian is the graph Laplacian of claim C7, as in the damped
Newton method for semi-discrete optimal transport (Kitagawa, Mérigot and Thibert, arXiv 1603.05579). On rounded or
repeated scores D has kinks at every scale and such steps stall. Then the sample takes over: its exact optimum for
targets corrected to the gradient at the best bias (a DANE step; Shamir, Srebro and Zhang, arXiv 1312.7853). Steps
that raise D are taken back and shortened, and after several of them a new sample is drawn. Ties are broken by hashed
dither far below the tolerance; both bounds are priced with the scores as given.
"""
