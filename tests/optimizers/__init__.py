"""Tests of bert4x.optimizers."""
