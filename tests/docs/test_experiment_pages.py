"""Every experiment has one page, which says the verdict beside the claim and what its figure shows."""

import re
import sys
from pathlib import Path

import pytest

from experiments import _runner

FOLDER = Path(__file__).parents[2] / "docs" / "experiments"


def pages():
    return sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")


def test_every_experiment_that_was_measured_has_a_page():
    measured = {name for name in _runner.experiment_names() if not _runner.load(name).VERDICT.startswith("Open")}
    assert measured <= set(pages()) <= set(_runner.experiment_names())


@pytest.mark.parametrize("name", pages())
def test_verdict_stands_beside_the_claim(name):
    title, claim, verdict, *_ = (FOLDER / f"{name}.md").read_text().split("\n\n")
    module = _runner.load(name)
    assert re.match(rf"# {name}: .+", title)
    assert " ".join(claim.split()) == f"*Claim:* {module.CLAIM}"
    assert " ".join(verdict.split()) == f"**Verdict:** {module.VERDICT}"


@pytest.mark.parametrize("name", [path.stem for path in sorted((FOLDER / "figures").glob("*.png"))])
def test_figure_has_a_visible_caption(name):
    before, figure, _ = (FOLDER / f"{name}.md").read_text().partition(f"](figures/{name}.png)")
    assert figure
    assert "\n*The figure.* " in before


def test_cards_show_question_and_verdict():
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(FOLDER.parent / "_ext"))
    try:
        import experiment_pages
    finally:
        sys.path.pop(0)
    cards = experiment_pages.read_pages(FOLDER)
    assert [card.name for card in cards] == pages()
    assert all(card.question and card.verdict.startswith("**Verdict:** ") for card in cards)
