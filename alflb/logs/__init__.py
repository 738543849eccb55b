"""Logs of runs: loads and biases of every layer and step, from the files of alflb and of other tools."""

from __future__ import annotations

from alflb.logs.balance import LayerBalance, balance_of, percentiles
from alflb.logs.reading import read_log
from alflb.logs.record import Record

__all__ = ["LayerBalance", "Record", "balance_of", "percentiles", "read_log"]
