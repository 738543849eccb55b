"""Compiled loops over the undecided entries, all in integers: assign, price by quantiles, reroute on a graph.

The entries form a sparse matrix by rows (`Undecided`, one row per token): row r owns entries ``start_R[r] ..
start_R[r + 1]``, entry n offers expert ``expert_N[n]`` (ascending in a row) at integer score ``score_N[n]``. A row
hands out ``picks_R[r]`` picks of `unit` units each, `unit` being 1 when the targets are whole numbers, to each of the
``weight_R[r]`` tokens it stands for; so an entry gets at most ``weight_R[r] * unit`` units.
``price_E`` is the integer bias.
"""

from __future__ import annotations

import numpy as np

from alflb.kernels._jit import jit, jit_borrowing

UNREACHED = 2**61
"""Cost of an arc that does not exist. Paths that do are below half of it, and sums stay inside int64."""

_TIE_SWEEPS = 20


@jit
def order_by_expert(rows, order_N, start_E, row_N):  # type: ignore[no-untyped-def]
    """Counting sort: entries by expert (ascending), the place where each expert's begin, and each entry's row."""
    for n in range(rows.expert_N.size):
        start_E[rows.expert_N[n] + 1] += 1
    for k in range(start_E.size - 1):
        start_E[k + 1] += start_E[k]
    place_E = start_E.copy()
    for row in range(rows.start_R.size - 1):
        for n in range(rows.start_R[row], rows.start_R[row + 1]):
            row_N[n] = row
            order_N[place_E[rows.expert_N[n]]] = n
            place_E[rows.expert_N[n]] += 1


@jit
def row_boundaries(rows, price_E, last_in_R, first_out_R):  # type: ignore[no-untyped-def]
    """A and B of every row: its picks-th and (picks + 1)-th largest priced scores (a row always has both)."""
    best = np.empty(price_E.size + 1, np.int64)
    for row in range(rows.picks_R.size):
        last_in_R[row], first_out_R[row] = _boundary(row, rows, price_E, best)


@jit
def _boundary(row, rows, price_E, best):  # type: ignore[no-untyped-def]
    """A and B of one row, by insertion into its picks + 1 best."""
    kept = rows.picks_R[row] + 1
    filled = 0
    for n in range(rows.start_R[row], rows.start_R[row + 1]):
        value = rows.score_N[n] + price_E[rows.expert_N[n]]
        if filled < kept:
            slot = filled
            filled += 1
        elif value > best[kept - 1]:
            slot = kept - 1
        else:
            continue
        while slot > 0 and value > best[slot - 1]:
            best[slot] = best[slot - 1]
            slot -= 1
        best[slot] = value
    return best[kept - 2], best[kept - 1]


@jit
def find_near(rows, price_E, reach, place_N, last_in_R):  # type: ignore[no-untyped-def]
    """Which entries no price change within `reach` can move: place_N is 1 if in, -1 if out, 0 if it may be either.

    `last_in_R` receives the row's picks-th largest priced score; 0 for rows without a choice, all of whose entries
    are in.
    """
    best = np.empty(price_E.size + 1, np.int64)
    for row in range(rows.picks_R.size):
        last_in_R[row] = 0
        if rows.start_R[row + 1] - rows.start_R[row] <= rows.picks_R[row]:
            place_N[rows.start_R[row] : rows.start_R[row + 1]] = 1
            continue
        last_in, first_out = _boundary(row, rows, price_E, best)
        last_in_R[row] = last_in
        for n in range(rows.start_R[row], rows.start_R[row + 1]):
            value = rows.score_N[n] + price_E[rows.expert_N[n]]
            place_N[n] = np.int8(value - first_out > reach) - np.int8(last_in - value > reach)


@jit
def reassign(rows, price_E, last_in_R, first_out_R, redo_R, unit, units_N, room_E):  # type: ignore[no-untyped-def]
    """Give the units of the rows to redo to their best entries, ties to the experts with most room; keep `room_E`."""
    for row in range(rows.picks_R.size):
        if not redo_R[row]:
            continue
        for n in range(rows.start_R[row], rows.start_R[row + 1]):
            value = rows.score_N[n] + price_E[rows.expert_N[n]]
            certain = value > last_in_R[row] or (value == last_in_R[row] and value > first_out_R[row])
            room_E[rows.expert_N[n]] += units_N[n]
            units_N[n] = unit * rows.weight_R[row] if certain else 0
            room_E[rows.expert_N[n]] -= units_N[n]
    tied = np.empty(price_E.size, np.int64)
    for row in range(rows.picks_R.size):
        if not redo_R[row] or last_in_R[row] > first_out_R[row]:
            continue
        left = rows.picks_R[row]
        count = 0
        for n in range(rows.start_R[row], rows.start_R[row + 1]):
            left -= units_N[n] > 0
            if units_N[n] == 0 and rows.score_N[n] + price_E[rows.expert_N[n]] == last_in_R[row]:
                tied[count] = n
                count += 1
        most = unit * rows.weight_R[row]
        for _ in range(left):
            choice = 0
            for place in range(1, count):
                if room_E[rows.expert_N[tied[place]]] > room_E[rows.expert_N[tied[choice]]]:
                    choice = place
            units_N[tied[choice]] = most
            room_E[rows.expert_N[tied[choice]]] -= most
            count -= 1
            tied[choice] = tied[count]
    for _ in range(_TIE_SWEEPS):
        if room_E.max() <= 0 or _sweep_ties(rows, price_E, last_in_R, first_out_R, unit, units_N, room_E) == 0:
            break


@jit
def _sweep_ties(rows, price_E, last_in_R, first_out_R, unit, units_N, room_E):  # type: ignore[no-untyped-def]
    """In each tied row, move one pick from the tied expert with least room to that with most; count the moves."""
    moves = 0
    for row in range(rows.start_R.size - 1):
        if last_in_R[row] > first_out_R[row]:
            continue
        most = unit * rows.weight_R[row]
        giver = -1
        taker = -1
        for n in range(rows.start_R[row], rows.start_R[row + 1]):
            k = rows.expert_N[n]
            if rows.score_N[n] + price_E[k] != last_in_R[row]:
                continue
            if units_N[n] == most and (giver < 0 or room_E[k] < room_E[rows.expert_N[giver]]):
                giver = n
            if units_N[n] == 0 and (taker < 0 or room_E[k] > room_E[rows.expert_N[taker]]):
                taker = n
        if giver >= 0 and taker >= 0 and room_E[rows.expert_N[taker]] - room_E[rows.expert_N[giver]] > most:
            units_N[giver] = 0
            units_N[taker] = most
            room_E[rows.expert_N[giver]] += most
            room_E[rows.expert_N[taker]] -= most
            moves += 1
    return moves


@jit
def find_contradicted(rows, unit, units_N, price_E, wrong_R, tied_R):  # type: ignore[no-untyped-def]
    """Mark the rows in which an entry with units to spare beats one with units, or ties with it; counts the first."""
    count = 0
    for row in range(rows.start_R.size - 1):
        least_in = np.int64(2**62)
        most_out = np.int64(-(2**62))
        for n in range(rows.start_R[row], rows.start_R[row + 1]):
            value = rows.score_N[n] + price_E[rows.expert_N[n]]
            if units_N[n] > 0:
                least_in = min(least_in, value)
            if units_N[n] < unit * rows.weight_R[row]:
                most_out = max(most_out, value)
        wrong_R[row] = least_in < most_out
        tied_R[row] = least_in == most_out
        count += wrong_R[row]
    return count


@jit
def quantile_steps(rows, price_E, rank_E, step_E):  # type: ignore[no-untyped-def]
    """For each expert the rank-th largest margin, which minimizes D along its price.

    Returns how many picks are misplaced whichever way ties fall.
    """
    start_E = np.zeros(price_E.size + 1, np.int64)
    for k in rows.expert_N:
        start_E[k + 1] += 1
    for k in range(price_E.size):
        start_E[k + 1] += start_E[k]
    margin_N, weight_N = np.empty_like(rows.score_N), np.empty_like(rows.score_N)
    _expert_margins(rows, price_E, start_E.copy(), margin_N, weight_N)
    misplaced = 0
    for k in range(rank_E.size):
        margins = margin_N[start_E[k] : start_E[k + 1]]
        weights = weight_N[start_E[k] : start_E[k + 1]]
        wins = 0
        ties = 0
        total = 0
        for n in range(margins.size):
            total += weights[n]
            wins += weights[n] if margins[n] > 0 else 0
            ties += weights[n] if margins[n] == 0 else 0
        misplaced += max(0, wins - rank_E[k]) + max(0, rank_E[k] - wins - ties)
        step_E[k] = 0
        if margins.size > 0:
            step_E[k] = _select(margins, weights, total - max(1, min(rank_E[k], total)))
    return misplaced


@jit
def _expert_margins(rows, price_E, place_E, margin_N, weight_N):  # type: ignore[no-untyped-def]
    """The margins of all entries and their weights, each expert's from `place_E` on, which moves to their end."""
    best = np.empty(price_E.size + 1, np.int64)
    for row in range(rows.picks_R.size):
        last_in, first_out = _boundary(row, rows, price_E, best)
        for n in range(rows.start_R[row], rows.start_R[row + 1]):
            k = rows.expert_N[n]
            value = rows.score_N[n] + price_E[k]
            margin_N[place_E[k]] = value - (first_out if value >= last_in else last_in)
            weight_N[place_E[k]] = rows.weight_R[row]
            place_E[k] += 1


@jit
def keep_near(rows, price_E, reach, kept, place_N, rank_E):  # type: ignore[no-untyped-def]
    """Copy the entries that price changes within `reach` could move to `kept`; where each one stands to `place_N`.

    Picks that no such change can undo are deducted from the rows' picks and the experts' ranks. Returns how many rows
    and entries were kept.
    """
    best = np.empty(price_E.size + 1, np.int64)
    num_rows = 0
    num_entries = 0
    for row in range(rows.picks_R.size):
        last_in, first_out = _boundary(row, rows, price_E, best)
        if last_in - first_out > reach:
            for n in range(rows.start_R[row], rows.start_R[row + 1]):
                if rows.score_N[n] + price_E[rows.expert_N[n]] >= last_in:
                    rank_E[rows.expert_N[n]] -= rows.weight_R[row]
            continue
        picks = rows.picks_R[row]
        for n in range(rows.start_R[row], rows.start_R[row + 1]):
            value = rows.score_N[n] + price_E[rows.expert_N[n]]
            if value - first_out > reach:
                picks -= 1
                rank_E[rows.expert_N[n]] -= rows.weight_R[row]
            elif last_in - value <= reach:
                kept.expert_N[num_entries] = rows.expert_N[n]
                kept.score_N[num_entries] = rows.score_N[n]
                place_N[num_entries] = n
                num_entries += 1
        kept.token_R[num_rows] = rows.token_R[row]
        kept.weight_R[num_rows] = rows.weight_R[row]
        kept.picks_R[num_rows] = picks
        num_rows += 1
        kept.start_R[num_rows] = num_entries
    return num_rows, num_entries


@jit
def _select(values, weights, rank):  # type: ignore[no-untyped-def]
    """The least value that, with those up to it, weighs more than `rank` (Hoare's quickselect, in place)."""
    low = 0
    high = values.size - 1
    while low < high:
        pivot = values[(low + high) // 2]
        left = low
        right = high
        below = 0  # weight of those before `left`
        while left <= right:
            while values[left] < pivot:
                below += weights[left]
                left += 1
            while values[right] > pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                weights[left], weights[right] = weights[right], weights[left]
                below += weights[left]
                left += 1
                right -= 1
        between = 0
        for n in range(right + 1, left):
            between += weights[n]
        if rank < below - between:
            high = right
        elif rank >= below:
            rank -= below
            low = left
        else:
            return pivot
    return values[low]


@jit
def reroute(undecided, by_expert, unit, units_N, price_E, room_E):  # type: ignore[no-untyped-def]
    """Move units from experts with room < 0 to experts with room > 0 at least cost; False when no path is left.

    Successive shortest paths on the E experts. The arc k -> j costs the least score any row loses by moving units
    from k to j; the two entries of that row are the arc's witness. Prices follow the path lengths, so that every
    row keeps holding its best entries, and paths run along arcs of reduced cost 0.

    A witness that has moved leaves its arc *stale* (`from_EE` < 0): the cost is then only a lower bound, and the
    next witness is sought when a shortest path wants the arc.
    """
    _, weight_R, _, start_R, expert_N, score_N = undecided
    order_N, start_E, row_N = by_expert
    most_R = unit * weight_R
    num_experts = price_E.size
    cost_EE = np.full((num_experts, num_experts), UNREACHED, np.int64)
    from_EE = np.full((num_experts, num_experts), -1, np.int64)
    to_EE = np.full((num_experts, num_experts), -1, np.int64)
    for row in range(start_R.size - 1):
        for n in range(start_R[row], start_R[row + 1]):
            if units_N[n] > 0:
                for m in range(start_R[row], start_R[row + 1]):
                    if units_N[m] < most_R[row]:
                        _offer(n, m, expert_N, score_N, cost_EE, from_EE, to_EE)
    rows = (start_R, order_N, start_E, row_N, expert_N, score_N, most_R, units_N)
    arcs = (cost_EE, from_EE, to_EE)
    distance_E = np.empty(num_experts, np.int64)
    parent_E = np.empty(num_experts, np.int64)
    settled_E = np.empty(num_experts, np.int64)
    while room_E.min() < 0:
        num_settled = _shortest_paths(rows, arcs, price_E, room_E, distance_E, parent_E, settled_E)
        farthest = -1
        for s in range(num_settled):
            if room_E[settled_E[s]] > 0:
                farthest = distance_E[settled_E[s]]
        if farthest < 0:
            return False
        for k in range(num_experts):
            price_E[k] += min(distance_E[k], farthest)
        for s in range(num_settled):
            sink = settled_E[s]
            while room_E[sink] > 0:
                amount = _path_capacity(rows, arcs, sink, parent_E, price_E, room_E)
                if amount == 0:
                    break
                _push(rows, arcs, sink, amount, parent_E, room_E)
    return True


@jit
def _shortest_paths(rows, arcs, price_E, room_E, distance_E, parent_E, settled_E):  # type: ignore[no-untyped-def]
    """Dijkstra from all experts with room < 0 until all with room > 0 are settled; returns how many nodes were."""
    cost_EE, from_EE, _ = arcs
    num_experts = price_E.size
    open_E = np.empty(num_experts, np.int64)  # distance while the node is open, UNREACHED once it is settled
    sinks = 0
    for k in range(num_experts):
        distance_E[k] = 0 if room_E[k] < 0 else UNREACHED
        open_E[k] = distance_E[k]
        parent_E[k] = -1
        sinks += room_E[k] > 0
    num_settled = 0
    while sinks > 0:
        nearest = open_E.min()
        if nearest >= UNREACHED // 2:
            break
        node = 0
        while open_E[node] != nearest:
            node += 1
        if parent_E[node] >= 0 and from_EE[parent_E[node], node] < 0:
            _find_witness(rows, arcs, parent_E[node], node)
            distance_E[node] = UNREACHED
            for s in range(num_settled):
                k = settled_E[s]
                through = distance_E[k] + price_E[k] + cost_EE[k, node] - price_E[node]
                if through < distance_E[node]:
                    distance_E[node] = through
                    parent_E[node] = k
            open_E[node] = distance_E[node]
            continue
        open_E[node] = UNREACHED
        settled_E[num_settled] = node
        num_settled += 1
        sinks -= room_E[node] > 0
        base = nearest + price_E[node]
        for j in range(num_experts):
            through = base + cost_EE[node, j] - price_E[j]
            shorter = through < distance_E[j]
            distance_E[j] = through if shorter else distance_E[j]
            open_E[j] = through if shorter else open_E[j]
            parent_E[j] = node if shorter else parent_E[j]
    return num_settled


@jit
def _path_capacity(rows, arcs, sink, parent_E, price_E, room_E):  # type: ignore[no-untyped-def]
    """Units the tree path to `sink` can carry: 0 if an arc on it is no longer tight or the source has no surplus."""
    row_N, most_R, units_N = rows[3], rows[-2], rows[-1]
    cost_EE, from_EE, to_EE = arcs
    amount = room_E[sink]
    node = sink
    while parent_E[node] >= 0:
        before = parent_E[node]
        if from_EE[before, node] < 0:
            _find_witness(rows, arcs, before, node)
        if cost_EE[before, node] + price_E[before] - price_E[node] != 0:
            return 0
        left, taken = from_EE[before, node], to_EE[before, node]
        amount = min(amount, units_N[left], most_R[row_N[taken]] - units_N[taken])
        node = before
    return max(0, min(amount, -room_E[node]))


@jit
def _push(rows, arcs, sink, amount, parent_E, room_E):  # type: ignore[no-untyped-def]
    """Send `amount` units down the tree path to `sink`; update the arcs of the rows that moved."""
    start_R, _, _, row_N, expert_N, score_N, most_R, units_N = rows
    cost_EE, from_EE, to_EE = arcs
    left_S = np.empty(parent_E.size, np.int64)
    taken_S = np.empty(parent_E.size, np.int64)
    length = 0
    node = sink
    while parent_E[node] >= 0:
        left_S[length] = from_EE[parent_E[node], node]
        taken_S[length] = to_EE[parent_E[node], node]
        length += 1
        node = parent_E[node]
    room_E[sink] -= amount
    room_E[node] += amount
    for step in range(length):
        units_N[left_S[step]] -= amount
        units_N[taken_S[step]] += amount
    for step in range(length):
        left, taken = left_S[step], taken_S[step]
        row = row_N[left]
        most = most_R[row]
        for n in range(start_R[row], start_R[row + 1]):
            k = expert_N[n]
            if units_N[left] == 0 and from_EE[expert_N[left], k] == left:
                from_EE[expert_N[left], k] = -1
            if units_N[taken] == most and to_EE[k, expert_N[taken]] == taken:
                from_EE[k, expert_N[taken]] = -1
            if units_N[n] > 0 and units_N[left] < most:
                _offer(n, left, expert_N, score_N, cost_EE, from_EE, to_EE)
            if units_N[taken] > 0 and units_N[n] < most:
                _offer(taken, n, expert_N, score_N, cost_EE, from_EE, to_EE)


@jit
def _offer(n, m, expert_N, score_N, cost_EE, from_EE, to_EE):  # type: ignore[no-untyped-def]
    """Make the move of units from entry n to entry m the arc's witness if it is the cheapest known."""
    k = expert_N[n]
    j = expert_N[m]
    cost = score_N[n] - score_N[m]
    if k != j and (cost < cost_EE[k, j] or (cost == cost_EE[k, j] and from_EE[k, j] < 0)):
        cost_EE[k, j] = cost
        from_EE[k, j] = n
        to_EE[k, j] = m


@jit
def _find_witness(rows, arcs, k, j):  # type: ignore[no-untyped-def]
    """Find a stale arc's cheapest row; one that costs no more than the lost witness ends the search at once."""
    start_R, order_N, start_E, row_N, expert_N, score_N, most_R, units_N = rows
    cost_EE, from_EE, to_EE = arcs
    lost_cost = cost_EE[k, j]
    entries_N = order_N[start_E[k] : start_E[k + 1]]
    first = first_at_least(entries_N, to_EE[k, j])
    cost_EE[k, j] = UNREACHED
    for turn in range(entries_N.size):
        n = entries_N[(first + turn) % entries_N.size]
        if units_N[n] == 0:
            continue
        row = row_N[n]
        m = start_R[row] + first_at_least(expert_N[start_R[row] : start_R[row + 1]], j)
        if m < start_R[row + 1] and expert_N[m] == j and units_N[m] < most_R[row]:
            _offer(n, m, expert_N, score_N, cost_EE, from_EE, to_EE)
        if cost_EE[k, j] == lost_cost:
            return


@jit_borrowing
def first_at_least(ascending_N, bound):  # type: ignore[no-untyped-def]
    """Index of the first of ascending numbers that reaches the bound (numpy's own takes long to compile)."""
    low, high = 0, ascending_N.size
    while low < high:
        middle = (low + high) // 2
        if ascending_N[middle] < bound:
            low = middle + 1
        else:
            high = middle
    return low
