"""One seed for everything that draws random numbers."""


def set_seed(seed):
    """Seed Python, NumPy and the backend, so that a script gives the same numbers again.

    Call it before the model is built: initialisers and dropout layers take their seeds when they are made. A
    `DataGenerator` has its own seed. On GPUs the order of float additions may still differ between two runs.

    Args:
        seed: integer in [0, 2**32).
    """
    from bert4x.backend import keras

    keras.utils.set_random_seed(seed)
