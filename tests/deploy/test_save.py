"""Saved networks come back elsewhere, without pickle; damaged or foreign files are refused; nothing is half written."""

import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from testkit.networks import NETWORKS
from torch import Tensor, nn

import shaprune as sp
import shaprune.deploy.save

Made = tuple[nn.Module, sp.Plan, Callable[[], nn.Module], Tensor]


def pruned(name: str) -> Made:
    make, example = NETWORKS[name]
    model, inputs = make().eval(), example()
    players = sp.find_players(model, inputs)
    kept = np.ones(players.n, dtype=bool)
    rng = np.random.default_rng(0)
    for group in players.groups:
        kept[rng.choice(group.indices, max(1, len(group) // 2), replace=False)] = False
    plan = sp.Plan.from_coalition(players, kept)
    small = sp.prune(model, plan, inputs)
    with torch.no_grad():
        for parameter in small.parameters():  # as fine-tuning would: the file, not the dense weights, must be used
            parameter.add_(0.01 * torch.randn_like(parameter))
    return small, plan, make, inputs


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Made]:
    made = pruned("residual")
    sp.save(made[0], made[1], tmp_path / "out")
    return tmp_path / "out", made


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    small, plan, make, inputs = pruned(name)
    sp.save(small, plan, tmp_path / "out")
    dense = make()
    again = sp.load(tmp_path / "out", build=lambda: dense)
    assert sum(p.numel() for p in dense.parameters()) == sum(p.numel() for p in make().parameters())  # cut in a copy
    assert not again.training
    assert torch.equal(again(inputs), small(inputs))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["manifest.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_manifest_tells_schema_versions_plan_and_shapes(saved: tuple[Path, Made]) -> None:
    folder, (small, plan, _, _) = saved
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["schema"] == 2
    assert set(manifest["versions"]) == {"shaprune", "torch", "python"}
    assert manifest["plan"]["removed"] == list(plan.removed)
    assert manifest["shapes"] == {name: list(t.shape) for name, t in small.state_dict().items()}


def test_an_existing_folder_is_kept_unless_overwritten_explicitly(saved: tuple[Path, Made]) -> None:
    folder, (small, plan, make, inputs) = saved
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with torch.no_grad():
        next(small.parameters()).zero_()
    with pytest.raises(sp.InputError, match="exists and is not empty"):
        sp.save(small, plan, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    sp.save(small, plan, folder, overwrite=True)
    assert torch.equal(sp.load(folder, build=make)(inputs), small(inputs))
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    small, plan, _, _ = pruned("mlp")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(sp.InputError, match="file exists and is a file"):
        sp.save(small, plan, tmp_path / "file")
    with pytest.raises(sp.InputError, match="cannot be written"):
        sp.save(small, plan, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("disk full")])
def test_a_failure_in_the_middle_leaves_nothing_new_and_loses_nothing(
    saved: tuple[Path, Made], monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    folder, (small, plan, _, _) = saved
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(shaprune.deploy.save, "save_file", fail)
    for target in (folder, folder.parent / "new"):
        with pytest.raises((KeyboardInterrupt, sp.InputError)):
            sp.save(small, plan, target, overwrite=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_a_full_disk_is_said_and_what_was_there_stays(saved: tuple[Path, Made]) -> None:
    folder, made = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, most[1]))  # no file may become longer
    try:
        with pytest.raises(sp.InputError, match=r"cannot be written: .*; nothing was written or lost") as caught:
            sp.save(made[0], made[1], folder, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert str(folder) in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_network_that_the_plan_did_not_make_is_not_saved(tmp_path: Path) -> None:
    _, plan, make, _ = pruned("mlp")
    with pytest.raises(sp.InputError, match="save the pruned network, not the dense one"):
        sp.save(make(), plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(sp.InputError, match=r"manifest\.json cannot be read"):
        sp.load(tmp_path / "nowhere", build=NETWORKS["mlp"][0])


def test_a_newer_schema_is_refused(saved: tuple[Path, Made]) -> None:
    folder, made = saved
    _edit(folder, lambda manifest: manifest.update(schema=3))
    with pytest.raises(sp.InputError, match="schema 3, newer than 2; update shaprune"):
        sp.load(folder, build=made[2])


def test_a_damaged_manifest_is_refused_naming_the_field(saved: tuple[Path, Made]) -> None:
    folder, made = saved
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[:-20])
    with pytest.raises(sp.InputError, match="no complete JSON"):
        sp.load(folder, build=made[2])
    (folder / "manifest.json").write_text(text)
    _edit(folder, lambda manifest: manifest.pop("shapes"))
    with pytest.raises(sp.InputError, match="damaged: shapes"):
        sp.load(folder, build=made[2])


def test_truncated_weights_are_refused(saved: tuple[Path, Made]) -> None:
    folder, made = saved
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(sp.InputError, match="truncated"):
        sp.load(folder, build=made[2])


def test_a_missing_tensor_and_a_wrong_shape_are_named(saved: tuple[Path, Made]) -> None:
    folder, made = saved
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    with pytest.raises(sp.InputError, match=f"tensor '{name}' is missing"):
        sp.load(folder, build=made[2])
    save_file(tensors | {name: torch.zeros(1, 2, 3)}, weights)
    with pytest.raises(sp.InputError, match=f"tensor '{name}' has shape"):
        sp.load(folder, build=made[2])


def test_a_factory_of_another_network_is_refused(saved: tuple[Path, Made]) -> None:
    with pytest.raises(sp.InputError, match="another model: layer"):
        sp.load(saved[0], build=NETWORKS["mlp"][0])
    with pytest.raises(sp.InputError, match="returned a int"):
        sp.load(saved[0], build=lambda: 3)  # type: ignore[arg-type,return-value]


def test_no_pickle_is_written_or_read(saved: tuple[Path, Made]) -> None:
    for path in saved[0].iterdir():
        head = path.read_bytes()[:2]
        assert head not in (b"PK", b"\x80\x02", b"\x80\x04")
    source = Path(shaprune.deploy.save.__file__).read_text()
    assert "torch.load" not in source
    assert "pickle" not in source.replace("no pickle", "")


def _edit(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
