"""Tests of bert4x.layers: one table of contracts, the reference, the numbers of the specification."""
