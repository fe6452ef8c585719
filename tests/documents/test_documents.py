"""The papers beside the code: the citation file is valid, names the four papers, and agrees with the package."""

import re
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAPERS = {  # arXiv number -> family names of the authors, year
    "2407.15875": (["Adamczewski", "Li", "Van Gool"], 2024),
    "2006.01795": (["Ancona", "Öztireli", "Gross"], 2020),
    "2311.10468": (["Diaz-Ortiz", "Kempinski", "Cornelisse", "Bachrach", "Kachman"], 2023),
}
SOFTWARE = {"cff-version", "message", "type", "title", "abstract", "version", "license", "authors", "keywords"}
SOFTWARE |= {"references", "date-released", "doi", "repository-code", "url"}  # of the schema, what a release may use
REFERENCE = {"type", "title", "authors", "year", "journal", "identifiers", "url", "notes", "doi"}


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def check_people(people: list[dict[str, str]]) -> None:
    assert people
    for person in people:
        assert set(person) <= {"name"} or set(person) <= {"family-names", "given-names"}
        assert all(isinstance(part, str) and part for part in person.values())


def test_the_citation_file_is_valid(citation: dict[str, Any]) -> None:
    assert citation["cff-version"] == "1.2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation) <= SOFTWARE
    assert citation["type"] == "software"
    check_people(citation["authors"])
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference) <= REFERENCE
        assert reference["type"] in ("article", "generic")
        assert isinstance(reference["year"], int)
        check_people(reference["authors"])
        for identifier in reference.get("identifiers", []):
            assert identifier["type"] in ("doi", "url", "swh", "other")


def test_it_is_about_this_version(citation: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_it_names_the_four_papers(citation: dict[str, Any]) -> None:
    assert len(citation["references"]) == 4
    found = {
        re.sub(r"^arXiv:", "", reference["identifiers"][0]["value"]): (
            [author["family-names"] for author in reference["authors"]],
            reference["year"],
        )
        for reference in citation["references"]
        if "identifiers" in reference
    }
    assert found == PAPERS
    (other,) = (reference for reference in citation["references"] if "identifiers" not in reference)
    assert (other["title"], other["authors"][0]["family-names"]) == ("The Importance of Filters", "Munovas")
    for number in PAPERS:
        assert f"https://arxiv.org/abs/{number}" in [reference.get("url") for reference in citation["references"]]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "RELEASING.md", "CHANGELOG.md"])
def test_targets_and_files_that_the_papers_name_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z]+)\b(?=`|    )", text):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"`([\w./-]+\.(?:md|txt|toml|cff|py))`", text):
        assert (ROOT / path).exists(), path


def test_there_is_a_deprecation_policy() -> None:
    assert "**Deprecation.**" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
