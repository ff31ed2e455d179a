"""Comparisons with transformers and bert4keras on tiny random models and on a real pretrained one."""
