"""The test suite: a mirror of the code, run once per backend by `python -m tests`."""
