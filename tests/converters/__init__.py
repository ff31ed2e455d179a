"""Tests of scripts/convert_checkpoints, each on tiny files in the format of its source."""
