"""Child process of `alflb.exact.reference.mincostflow`: five arrays on standard input, flows on standard output."""

from __future__ import annotations

import io
import sys

import numpy as np


def main() -> int:
    """Solve one min-cost flow; 0 when optimal, 1 with a line on standard error otherwise."""
    from ortools.graph.python.min_cost_flow import SimpleMinCostFlow  # never in a process that has highspy

    message = io.BytesIO(sys.stdin.buffer.read())
    tails, heads, capacities, costs, supplies = (np.load(message, allow_pickle=False) for _ in range(5))
    flow = SimpleMinCostFlow()
    arcs = flow.add_arcs_with_capacity_and_unit_cost(tails, heads, capacities, costs)
    flow.set_nodes_supplies(np.arange(len(supplies)), supplies)
    status = flow.solve()
    if status != flow.OPTIMAL:
        print(f"status {status.name}; with -inf scores a balanced assignment may not exist", file=sys.stderr)
        return 1
    np.save(sys.stdout.buffer, flow.flows(arcs), allow_pickle=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
