"""float64 for the tests of formulas."""

import pytest

from bert4x.backend import keras


@pytest.fixture
def float64():
    """float64 everywhere, the learning rate included."""
    is_jax = keras.backend.backend() == "jax"
    if is_jax:
        import jax

        jax.config.update("jax_enable_x64", True)
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield "float64"
    keras.config.set_floatx(before)
    if is_jax:
        jax.config.update("jax_enable_x64", False)
