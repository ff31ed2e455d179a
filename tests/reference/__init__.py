"""The layers and models again, written as plainly as NumPy allows: what the tests compare with."""
