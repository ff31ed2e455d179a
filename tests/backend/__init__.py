"""Tests of bert4x.backend; run once per backend, chosen by KERAS_BACKEND."""
