"""Run by a Python that has bert4keras: builds models from checkpoints and writes last hidden states and MLM logits.

Usage: python bert4keras_oracle.py JOB.json, which says models (name: arguments), inputs (.npz) and outputs (.npz).
"""

import json
import os
import sys

# bert4keras on tf.keras, and tf.keras from the package tf-keras: TensorFlow itself brings Keras 3.
os.environ["TF_KERAS"] = os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def main(path):
    import numpy as np
    from bert4keras.backend import keras
    from bert4keras.models import build_transformer_model

    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    with np.load(job["inputs"]) as arrays:
        inputs = [arrays["ids"], arrays["segments"]]
    outputs = {}
    for name, options in job["models"].items():
        model = build_transformer_model(**options)
        last = model.get_layer(f"Transformer-{options['num_hidden_layers'] - 1}-FeedForward-Norm").output
        outputs[f"{name} last"] = keras.models.Model(model.inputs, last).predict(inputs, verbose=0)
        outputs[f"{name} mlm"] = model.predict(inputs, verbose=0)
    np.savez(job["outputs"], **outputs)


if __name__ == "__main__":
    main(sys.argv[1])
