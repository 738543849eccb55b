"""The page of the comparison names the versions these tests run against."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from _extras import require

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
PACKAGES = {
    "megatron-core": "megatron.core",
    "torchtitan": "torchtitan",
    "ai2-olmo-core": "olmo_core",
    "transformers": "transformers",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_is_about_the_installed_version(package):
    require(PACKAGES[package])
    (heading,) = re.findall(rf"^## {package} (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    versions = heading.split(" and ")
    assert version(package) in versions, f"docs/parity.md is about {package} {heading}; compare again and update it"
