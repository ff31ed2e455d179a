"""Converters of checkpoints, one program per source; each runs as `python -m scripts.convert_checkpoints.NAME`."""

import os
import sys
from pathlib import Path

# The converters share modules of this folder, whether they are started by path or by `-m`.
sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
