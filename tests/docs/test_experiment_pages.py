"""Every experiment has one page, which says the verdict beside the claim and what its figure shows."""

import re
import sys
from pathlib import Path

import pytest

from experiments import _runner

FOLDER = Path(__file__).parents[2] / "docs" / "experiments"
VERDICTS = ("**Supported", "**Refuted", "**Partly supported", "**Undecided")


def pages():
    return sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")


def test_pages_are_of_experiments():
    assert set(pages()) <= set(_runner.experiment_names())


@pytest.mark.parametrize("name", pages())
def test_verdict_stands_beside_the_claim(name):
    title, verdict, claim, *_ = (FOLDER / f"{name}.md").read_text().split("\n\n")
    assert re.match(rf"# {name}: .+", title)
    assert verdict.startswith(VERDICTS)
    assert claim.startswith("*Claim under test:*")


@pytest.mark.parametrize("name", pages())
def test_claim_is_the_one_of_the_experiment(name):
    claim = (FOLDER / f"{name}.md").read_text().split("\n\n")[2].removeprefix("*Claim under test:*")
    assert " ".join(claim.split()).casefold() == " ".join(_runner.load(name).CLAIM.split()).casefold()


@pytest.mark.parametrize("name", pages())
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
    assert all(card.question and card.verdict.startswith(VERDICTS) for card in cards)
