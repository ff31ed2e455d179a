"""Tests of bert4x.snippets."""
