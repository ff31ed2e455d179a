"""The numbers of the specification for ON-LSTM, DGCNN and VQ, and the focal loss."""

import numpy as np
from keras import ops

from bert4x import layers
from bert4x.backend import focal_loss, runtime
from tests.layers.helpers import gradients, randomize, to_arrays


def _float32(x):
    return ops.convert_to_tensor(np.asarray(x, "float32"))


def _on_lstm(case, **options):
    """A layer with the case's weights, and the case's x."""
    layer = layers.ONLSTM(**case.config, **options)
    x = case.x() if "mask" in case.inputs else _float32(case.inputs["x"])
    layer.build((None, None, x.shape[-1]))
    layer.set_weights([case.weights[name] for name in ("kernel", "recurrent_kernel", "bias")])
    return layer, x


def on_lstm_step(case):
    layer, x = _on_lstm(case)
    h, c = (_float32(case.inputs[name]) for name in ("h", "c"))
    masters = ops.matmul(x, layer.kernel) + ops.matmul(h, layer.recurrent_kernel) + layer.bias
    new_h, new_c = layer.step(x, h, c)
    forget, remember = layer.master_gates(masters[:, : 2 * layer.levels])
    return {"h": new_h, "c": new_c, "master_forget": forget, "master_input": remember}


def on_lstm_sequence(case):
    """Distances at masked steps are not specified; ours are 0."""
    layer, x = _on_lstm(case, return_distances=True)
    output, *distances = layer(x)
    names, mask = ("distance", "distance_in"), case.inputs["mask"].astype(bool)
    for name, distance in zip(names, to_arrays(distances), strict=True):
        assert (distance[~mask] == 0).all()
        case.outputs[name] = np.where(mask, case.outputs[name], 0)
    return {"output": output, **dict(zip(names, distances, strict=True))}


def gated_convolution(case):
    x, names = case.x(), {"w": "conv/kernel", "b": "conv/bias", "w1": "shortcut/kernel", "b1": "shortcut/bias"}
    layer = layers.DilatedGatedConv1D(**case.config)
    layer(x)
    for variable in layer.weights:
        short = {path: name for name, path in names.items()}[variable.path.removeprefix(f"{layer.name}/")]
        variable.assign(case.weights[short])
    return {"output": layer(x)}


def attention_pooling(case):
    x, layer = case.x(), layers.AttentionPooling1D(**case.config)
    layer(x)
    layer.key.set_weights([case.weights["wk"]])
    layer.score.set_weights([case.weights["wo"]])
    return {"output": layer(x)}


def focal(case):
    return {"loss": focal_loss(_float32(case.inputs["y_true"]), _float32(case.inputs["y_pred"]), **case.config)}


def quantizer(case):
    """Values, and the gradients of the loss alone."""
    layer = layers.VectorQuantizer(**case.config, return_indices=True)
    z = case.inputs["z"].astype("float32")
    layer.build()
    layer.codebook.assign(case.weights["codebook"])
    quantized, indices = layer(z)
    parts = {}
    for name in ("codebook", "commitment"):
        weights = {"codebook_weight": 1.0, "commitment_weight": 0.25}
        weights = {k: v if k.startswith(name) else 0.0 for k, v in weights.items()}
        one = layers.VectorQuantizer(**{**case.config, **weights})
        one.build()
        one.codebook.assign(case.weights["codebook"])
        one(z)
        parts[f"{name}_loss"] = one.losses[0]
    return {
        "indices": indices, "quantized": quantized, **parts, "loss_gradient_z": _loss_gradient(layer, z),
        "loss_gradient_codebook": gradients(layer, lambda: _loss(layer, z))["codebook"],
    }


def _loss(layer, z):
    layer(z)
    return layer.losses[-1]


def _loss_gradient(layer, z):
    return runtime.value_and_grad(lambda x: _loss(layer, x), z)[1]


def quantizer_means(case):
    """One training step of the running means; the codes start where the case's vectors choose the case's indices."""
    layer = layers.VectorQuantizer(5, 3, ema=True, return_indices=True, **case.config)
    layer.build()
    randomize(layer)
    z, indices = case.inputs["z"].astype("float32"), case.inputs["indices"]
    means = [z[indices == j].mean(0) if (indices == j).any() else [9, 9, 9] for j in range(5)]
    layer.codebook.assign(np.array(means))
    layer.cluster_size.assign(case.weights["cluster_size"])
    layer.code_sum.assign(case.weights["code_sum"])
    np.testing.assert_array_equal(to_arrays(layer(z, training=True))[1], indices)
    return {"cluster_size": layer.cluster_size, "code_sum": layer.code_sum, "codebook": layer.codebook}


CHECKS = {
    **{f"dgcnn_block_{kind}rate{rate}": gated_convolution for kind in ("", "projected_") for rate in (1, 2)},
    "attention_pooling": attention_pooling,
    "focal_loss": focal,
    **{f"on_lstm_step_{gate}": on_lstm_step for gate in ("reverse_cumsum", "one_minus_cumax")},
    **{f"on_lstm_sequence_{gate}": on_lstm_sequence for gate in ("reverse_cumsum", "one_minus_cumax")},
    "vq": quantizer,
    "vq_ema": quantizer_means,
}
