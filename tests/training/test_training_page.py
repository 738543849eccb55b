"""docs/training.md does what it says: its blocks run in order, its links lead somewhere."""

import re
from pathlib import Path

from tests._extras import require

require("torch")
require("transformers")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/training.md").read_text()


def test_code_blocks_run_in_order(capsys):
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 10
    for block in blocks:
        exec(compile(block, "docs/training.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "LoadBalancer(2 layers, rule=Sign(schedule=Constant(step_size=0.001)), num_steps=4)" in printed
    assert "alflb/layer_01/max_vio_global" in printed
    assert names["layers"][0].tokens_per_expert_E.sum() == 128


def test_files_it_names_exist():
    for name in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (ROOT / name).exists(), name
