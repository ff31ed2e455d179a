"""Tests of the pretraining scripts, which import one another by plain names."""

import sys

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "pretrain"))
