"""docs/training_models.md says of every MoE block of the installed transformers what it gets, and nothing else.

``python -m tests.training.test_model_table`` writes the page anew.
"""

import warnings
from pathlib import Path

import pytest

from tests.training.families import examine_all
from tests.training.models import transformers

PAGE = Path(__file__).parents[2] / "docs/training_models.md"

HEAD = """# Models of transformers

What `LoadBalancer.attach` makes of every MoE block in transformers {version}. The table is written by
`python -m tests.training.test_model_table`, which builds each block with tiny random weights,
attaches, calls it twice and looks at the loads: every token must be counted K times, attaching must
not change a bit of the output, and a step of the bias must move the tokens.
`tests/training/test_model_table.py` compares it.

* **works**: the block has a selection bias, under the name given.
* **opt-in**: the block has none; `LoadBalancer.attach(model, add_bias=True)` gives it one.
* **refused**: an error, for the reason given.

| family | block | result |
|---|---|---|
"""


def page():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = examine_all()
    counts = {word: sum(row.verdict.startswith(word) for row in rows) for word in ("works", "opt-in", "refused", "not")}
    lines = "".join(f"| {row.family} | {row.block} | {row.verdict} |\n" for row in rows)
    total = (
        f"\n{len(rows)} blocks: {counts['works']} work, {counts['opt-in']} by opt-in, {counts['refused']} refused, "
        f"{counts['not']} not examined.\n"
    )
    return HEAD.format(version=transformers.__version__) + lines + total


def test_the_table_of_models_is_true():
    text = PAGE.read_text()
    if f"transformers {transformers.__version__}." not in text:
        pytest.skip("the page is of another version of transformers")
    assert page() == text


if __name__ == "__main__":
    PAGE.write_text(page())
