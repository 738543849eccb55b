"""placeholder"""
from __future__ import annotations

import numpy as np

from alflb.exact._solution import SolverError
from alflb.exact.screening import row_kernels
from alflb.exact.screening.guess import BiasGuess, guess_bias
from alflb.exact.screening.settle import Settlement, settle
from alflb.exact.screening.sources import ArraySource, ScoreSource
from alflb.exact.screening.undecided import list_all, screen
from alflb.exact.screening.units import Grid, target_units

def certify(source, grid, top_k, unit, target_U, found, experts_TK):
    load = np.zeros(source.num_experts, np.int64)
    split = np.empty((found.rows.expert_N.size + top_k*found.rows.token_R.size if unit>1 else 0, 3), np.int64)
    n=0; total=0.; lossless=True
    for first, rows in source.chunks():
        v, ll, m, ok = row_kernels.certify_rows(rows, grid.per_unit, row_kernels.padded(found.price_E, row_kernels.num_lanes(top_k)), top_k, row_kernels.num_lanes(top_k), unit, first, found.rows.token_R, found.rows.start_R,
            found.rows.expert_N, found.units_N, load, experts_TK[first:first+len(rows)], split[n:])
        n+=m; total+=v; lossless &= ll
        if not ok: return None
    if not (load==target_U).all(): return None
    return total, lossless, split[:n]

def solve_source(source, top_k, target_E, bias_E=None, verbose=False):
    import time
    t0=time.perf_counter()
    def say(*a):
        if verbose: print('%8.2f ms'%((time.perf_counter()-t0)*1e3), *a)
    T,E=source.num_tokens, source.num_experts
    target_U, unit = target_units(target_E, T, top_k)
    grid = Grid.finest(source.largest, E)
    say('start')
    sample = source.sample(max(4096, T//8))
    say('sample')
    g = guess_bias(sample, top_k, target_E/T, np.zeros(E) if bias_E is None else bias_E, 2*source.largest or 1.0)
    say('guess', np.median(g.width_E))
    experts_TK=np.empty((T,top_k),np.int32)
    for attempt in range(8):
        if attempt<7: und, certain = screen(source, g, top_k, grid)
        else: und, certain = list_all(source, top_k, grid)
        room = target_U - certain*unit
        say('screen rows',len(und.token_R),'entries',len(und.expert_N), 'room', room.min())
        f = settle(und, grid.prices(g.bias_E), room, unit)
        say('settled', f.is_balanced)
        if not f.is_balanced:
            lim=und.expert_N; cnt=np.bincount(lim,minlength=E)*unit; bad=(room<0)|(room>cnt)
            g = BiasGuess(grid.bias(f.price_E), np.where(bad|~bad.any(), 4*g.width_E, 1.5*g.width_E)); continue
        c = certify(source, grid, top_k, unit, target_U, f, experts_TK)
        say('certified', c is not None)
        if c is not None:
            return c[0], grid.bias(f.price_E), experts_TK, c, attempt
        g = BiasGuess(grid.bias(f.price_E), g.width_E*2)
    raise SolverError('infeasible')
