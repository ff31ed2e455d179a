"""Package metadata: what bert4x needs, and the extras that add to it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "bert4x/__init__.py").read_text(encoding="utf-8"))[1]

setup(
    name="bert4x",
    version=VERSION,
    description="BERT-family Transformers on Keras 3: TensorFlow, JAX and PyTorch, unchanged",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["bert4x", "bert4x.*"]),
    package_data={"bert4x": ["py.typed"]},
    install_requires=[
        # The default backend, and on every backend the reader and writer of TensorFlow checkpoints.
        "tensorflow>=2.18",
        "keras>=3.15",
        "numpy",
        "h5py",
        "safetensors>=0.4",
        "sentencepiece>=0.2",
        "tqdm",
    ],
    extras_require={
        "jax": ["jax>=0.4.35"],
        "torch": ["torch>=2.4"],
        "bpe": ["tokenizers>=0.20"],
        # CPM's texts are cut into words by jieba.
        "cpm": ["jieba>=0.42"],
        # PyTorch's .bin files and shards.
        "convert": ["torch>=2.4"],
        "serve": ["flask>=3.0"],
        "plot": ["matplotlib>=3.8", "tensorboard>=2.17"],
        # The handwritten digits of examples/task_image_vq_vae.py.
        "digits": ["scikit-learn>=1.5"],
        # ruff is pinned because every new release may add findings. The tests train and compare with tokenizers, cut
        # CPM's texts with jieba, and draw; xdist runs them on two cores.
        "test": [
            "pytest>=8.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "tokenizers>=0.20", "jieba>=0.42", "ruff==0.17.6",
            "matplotlib>=3.8", "tensorboard>=2.17",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
