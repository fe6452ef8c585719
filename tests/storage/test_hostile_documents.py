"""Documents that were changed anywhere: an error of ours, or what they say now; nothing else."""

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testkit.networks import NETWORKS, labelled

import shaprune as sp
from shaprune.deploy.save import MANIFEST
from shaprune.errors import InputError, ShapruneError
from shaprune.planning.plan import Plan
from shaprune.planning.scores import Scores
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.players import player_documents
from shaprune.players.layer_costs import Layer
from shaprune.players.player_documents import check_players
from shaprune.storage.atomic_files import read_json

MAKE, EXAMPLE = NETWORKS["mlp"]
ODD = [2**31, 2**63, -(2**70), 10**400, 1e308, -0.5, float("nan"), float("inf"), "", "x", "\0", "1", [], {}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(ODD) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One document of every kind, and a saved network."""
    model = MAKE().eval()
    players = sp.find_players(model, EXAMPLE())
    data = [labelled(EXAMPLE(), 12)]
    scores = sp.score(model, players, data, "fidelity", max_evaluations=2_000, progress=False)
    plan = sp.plan(scores, sp.Budget(params=0.7))
    folder = tmp_path_factory.mktemp("made") / "small"
    sp.save(sp.prune(model, plan, EXAMPLE()), plan, folder)
    documents = {
        "plan": plan.to_json(),
        "values": scores.to_json(),
        "curves": sp.sensitivity(model, players, scores, data).to_json(),
        "manifest": json.loads((folder / MANIFEST).read_text()),
    }
    return {"folder": folder, **{name: json.loads(json.dumps(found)) for name, found in documents.items()}}


def places(document: Any, at: Place = ()) -> Iterator[Place]:
    """Where something stands in a document; of long lists the first and the last entry."""
    yield at
    inside: Any = document.items() if isinstance(document, dict) else []
    if isinstance(document, list):
        inside = [(i, document[i]) for i in sorted({0, len(document) - 1}) if document]
    for key, entry in inside:
        yield from places(entry, (*at, key))


def changed(document: Any, draw: Callable[..., Any]) -> Any:
    """A copy with one thing replaced, removed, doubled, or moved elsewhere."""
    result = copy.deepcopy(document)
    found = list(places(document))
    place = draw(st.sampled_from(found))
    if not place:
        return draw(JSON)
    inside = result
    for step in place[:-1]:
        inside = inside[step]
    how = draw(st.sampled_from(["replace", "remove", "double", "move"]))
    if how == "remove":
        del inside[place[-1]]
    elif how == "double" and isinstance(inside, list):
        inside.append(copy.deepcopy(inside[place[-1]]))
    elif how == "move":
        entry = document
        for step in draw(st.sampled_from(found)):
            entry = entry[step]
        inside[place[-1]] = copy.deepcopy(entry)
    else:
        inside[place[-1]] = draw(JSON)
    return result


def use_plan(document: Any) -> None:
    plan = Plan.from_json(document)
    assert plan.summary()
    assert plan.players.summary()
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again.removed == plan.removed


def use_values(document: Any) -> None:
    scores = Scores.from_json(document)
    for values in scores.values():
        assert len(values.ranking()) == values.n
        assert values.interval().shape == (values.n, 2)
    assert scores.players.summary()
    sp.plan(scores, sp.Budget(params=0.9))


def use_curves(document: Any) -> None:
    found = Sensitivity.from_json(document)
    assert found.summary()


@pytest.mark.parametrize(("kind", "use"), [("plan", use_plan), ("values", use_values), ("curves", use_curves)])
def test_a_changed_document_is_an_error_of_ours_or_what_it_says(
    made: dict[str, Any], kind: str, use: Callable[[Any], None]
) -> None:
    use(made[kind])

    @FUZZ
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        document = changed(made[kind], data.draw)
        with suppress(ShapruneError):
            use(document)

    fuzz()


def test_a_changed_manifest_is_an_error_of_ours_or_gives_the_network(made: dict[str, Any]) -> None:
    path, good = made["folder"] / MANIFEST, made["manifest"]
    expected = sp.load(made["folder"], build=MAKE)(EXAMPLE())

    @FUZZ
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        path.write_text(json.dumps(changed(good, data.draw)))
        try:
            loaded = sp.load(made["folder"], build=MAKE)
        except ShapruneError:
            return
        assert torch.equal(loaded(EXAMPLE()), expected)

    try:
        fuzz()
    finally:
        path.write_text(json.dumps(good))


def test_every_field_of_a_layer_is_checked_and_may_be_missing_where_it_has_a_default() -> None:
    """A field that the document does not name would be taken as it stands."""
    fields = {field.name: field.default for field in dataclasses.fields(Layer)}
    checked = player_documents._Layer.model_fields
    required = {name for name, default in fields.items() if default is dataclasses.MISSING}
    assert set(checked) == set(fields)
    assert {name for name, field in checked.items() if field.is_required()} == required
    assert all(checked[name].default == fields[name] for name in fields if name not in required)


@pytest.mark.parametrize(("key", "value"), [("depth", "two"), ("cells", -1), ("eps", float("nan")), ("held", [1.0])])
def test_a_layer_that_was_changed_is_refused(key: str, value: object) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)).eval()
    document = sp.find_players(model, torch.randn(4, 3)).to_json()
    check_players(document)
    document["layers"]["1"][key] = value
    with pytest.raises(InputError, match="not players written by shaprune"):
        check_players(document)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "\xff", "", "nul", '{"a": 1}x'])
def test_text_that_is_no_document_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ShapruneError):
        Plan.load(path)


def test_a_pipe_or_a_device_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(sp.InputError, match="is no file but a pipe or a device"):
            read_json(path)
    with pytest.raises(sp.InputError, match="cannot be read"):
        read_json(tmp_path)
