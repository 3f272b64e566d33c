"""Atlases on the hub: pushed with the real client to a local stand-in, and read back, against those on this machine."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

import dictionaries
import small
import zeropass as zp
from commands import Run
from hubs import Hub, serving_hub
from serving import serving
from zeropass.atlas.card import is_edited
from zeropass.atlas.distributions import Neighbours, clouds, spreads
from zeropass.atlas.neighbours import neighbours_of
from zeropass.atlas.parquet_rows import rows_of
from zeropass.atlas.schema import SCHEMA_VERSION
from zeropass.atlas.summary import in_short, list_types_of, outside, overview, strengths, subheads, telling
from zeropass.checkpoints.hub_files import Dataset, HubPath, open_dataset
from zeropass.errors import BadAddress, BadAtlas, BadOption, NotFetched, NotPushed, ZeropassError
from zeropass.records.search import QueryWord
from zeropass.web.load import Sources, open_sources

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client

KINDS = ["llama", "bert", "llama+lens"]
ADDRESS = "hf://datasets/owner/atlas"
OPTIONS = zp.Options(k=6, pairs=5)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Yield a running stand-in without datasets, and empty caches; files are fetched in small parts."""
    monkeypatch.setenv("ZEROPASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(HubPath, "BLOCK", 512)
    with serving_hub({}, tmp_path / "hub") as served:
        yield served


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "atlas"
    small.build(model, folder, OPTIONS)
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """Return a copy of an atlas that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "atlas"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def files_of(hub: Hub) -> dict[str, bytes]:
    return hub.repos["datasets/owner/atlas"]


def change(hub: Hub, name: str, data: bytes | None) -> None:
    """Replace a file of the dataset, or remove it, in a new commit."""
    files = files_of(hub) | ({} if data is None else {name: data})
    hub.commit("datasets/owner/atlas", {key: value for key, value in files.items() if data is not None or key != name})


# --- An atlas on the hub answers as the one that was pushed -----------------------------------------------------------


def plain(value: Any) -> Any:
    """Return what can be compared of an answer."""
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value.to_json() if hasattr(value, "to_json") else value


WORD, OTHER = QueryWord("a", (300,)), QueryWord("b", (301, 302))
QUESTIONS: dict[str, Callable[[zp.Atlas], Any]] = {
    "stored": lambda atlas: atlas.explain("L1.ff.3", k=10),
    "one word": lambda atlas: atlas.search([WORD], k=5),
    "plane": lambda atlas: clouds(atlas, "L1.attn.0.v.2", 5),
    "neuron": lambda atlas: atlas["L1.ff.3"],
    "words": lambda atlas: atlas.explain("L2.ff.7", tokens="words", k=9),
    "longer": lambda atlas: atlas.explain("L0.attn.1.q.2", k=50),
    "frame": lambda atlas: atlas.explain("L0.ff.5", frame="output"),
    "map": lambda atlas: atlas["L1.attn.2"],
    "many of one word": lambda atlas: atlas.search([WORD], k=40),
    "concept": lambda atlas: atlas.search([WORD, OTHER], k=4),
    "contrast": lambda atlas: atlas.search([OTHER, QueryWord("c", (310,), against=True)], k=4),
    "writes": lambda atlas: atlas.search([OTHER], side="write", k=3),
    "layers": lambda atlas: atlas.find_tokens([305], layers=(1, 2), k=3),
    "pattern": lambda atlas: atlas.search([QueryWord("p", tuple(range(300, 330)), "pattern")], k=3),
    "strongest": lambda atlas: atlas.strongest(["value", "o"], (0, 3), k=7),
    "coherent": lambda atlas: atlas.coherent("value", "output", (0, 3), 5),
    "maps": lambda atlas: [atlas.head_maps(layer, "ov") for layer in range(3)],
    "types": list_types_of,
    "overview": lambda atlas: overview(atlas, "write", "output", "strength"),
    "layer": lambda atlas: telling(atlas, 1, count=9),
    "columns": lambda atlas: subheads(atlas, 1, 2),
    "outside": lambda atlas: outside(atlas, -1),
    "short": lambda atlas: in_short(atlas, ["L1.ff.3", "L2.ff.4"]),
    "strengths": lambda atlas: list(strengths(atlas, 1).items()),
    "neighbours": lambda atlas: neighbours_of(atlas, "L1.ff.3"),
    "spreads": lambda atlas: spreads(atlas, "L1.ff.3"),
    "nearest": lambda atlas: Neighbours(atlas).nearest(301),
    "note": lambda atlas: (atlas.note, atlas.title, atlas.lens, atlas.view, atlas.layers, atlas.is_change),
    "hidden": lambda atlas: [atlas.hidden(view) for view in ("default", "words", "all")],
    "vocabulary": lambda atlas: [atlas.vocab.label(i) for i in range(small.V)],
    "runs": lambda atlas: [[run.first, run.count, atlas.vectors(run), atlas.factors(run)] for run in atlas.runs],
    "lists": lambda atlas: atlas.sql("SELECT id, address, top_ids FROM lists ORDER BY id LIMIT 99").fetchall(),
    "counts": lambda atlas: atlas.sql(
        "SELECT count(*), (SELECT count(*) FROM pairs), (SELECT max(z) FROM hits) FROM tokens"
    ).fetchall(),
    "manifest": lambda atlas: {key: atlas.info()[key] for key in atlas.manifest},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_atlas_on_the_hub_gives_the_same_answers(
    kind: str, hub: Hub, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first questions read parts, the others whole files too; at the end there is no hub."""
    local = small.built(kind, tmp_path_factory).atlas
    push = zp.push_atlas(local.path, "owner/atlas")
    remote = zp.open_atlas(ADDRESS)
    assert str(remote.path) == f"{ADDRESS}@{push.commit}"
    answers = {name: plain(ask(local)) for name, ask in QUESTIONS.items()}
    for name, ask in QUESTIONS.items():
        assert plain(ask(remote)) == answers[name], name
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    sent, again = hub.sent, zp.open_atlas(ADDRESS)
    for name, ask in QUESTIONS.items():
        assert plain(ask(again)) == answers[name], name
    assert hub.sent == sent


def test_parts_of_arrays_and_of_the_lens_are_those_of_the_files(hub: Hub, tmp_path_factory: Any) -> None:
    local = small.built("llama+lens", tmp_path_factory).atlas
    zp.push_atlas(local.path, "owner/atlas")
    remote = zp.open_atlas(ADDRESS)
    for run in local.runs:
        assert np.array_equal(remote.vector(run, run.count // 2), local.vector(run, run.count // 2))
        space = local.space(run)
        assert np.array_equal(remote.rows_at(space, [7, 3, 599]), local.rows_at(space, [7, 3, 599]))
    large = [path for path in remote.path.rglob("*") if path.size > 20_000 and path.name.startswith(("rows", "lens"))]
    assert large
    assert not [path for path in large if path.copy]


def test_errors_are_those_of_the_atlas_that_was_pushed(hub: Hub, built: Path) -> None:
    zp.push_atlas(built, "owner/atlas")
    local, remote = zp.open_atlas(built), zp.open_atlas(ADDRESS)
    for ask in (
        lambda atlas: atlas["L9.ff.0"],
        lambda atlas: atlas["L1.ff.99"],
        lambda atlas: atlas.explain("L1.ff.0", frame="paper"),
        lambda atlas: atlas.find("Babade"),
        lambda atlas: atlas.find("babade", role="nose"),
        lambda atlas: atlas.rows("nose"),
        lambda atlas: atlas.sql("SELECT nose FROM lists"),
    ):
        with pytest.raises(ZeropassError) as expected:
            ask(local)
        with pytest.raises(type(expected.value)) as error:
            ask(remote)
        assert str(error.value).replace(str(remote.path), str(local.path)) == str(expected.value)


def test_an_atlas_of_a_change_is_shared_too(hub: Hub, model: Path, tmp_path: Path) -> None:
    tuned = small.tuned(model, tmp_path / "tuned")
    with small.one_thread():
        zp.build_change(zp.open_model(str(model)), zp.open_model(str(tuned)), tmp_path / "change", OPTIONS)
    push = zp.push_atlas(tmp_path / "change", "owner/atlas")
    assert "A fine-tune as words" in push.card
    local, remote = zp.open_atlas(tmp_path / "change"), zp.open_atlas(ADDRESS)
    assert remote.is_change
    assert plain(remote["L1.ff.3"]) == plain(local["L1.ff.3"])
    assert plain(remote.search([WORD], k=4)) == plain(local.search([WORD], k=4))


def test_an_atlas_of_a_dictionary_is_shared_too(hub: Hub, model: Path, tmp_path: Path) -> None:
    encoders, decoders = torch.randn(2, 40, small.D, generator=torch.Generator().manual_seed(0))
    dictionary = dictionaries.transcoders(tmp_path / "dictionary", [(encoders, decoders), (decoders, encoders)])
    with small.one_thread():
        opened = zp.open_model(str(model))
        zp.build(opened, tmp_path / "features", OPTIONS, lens=None, features=zp.open_dictionary(opened, dictionary))
    push = zp.push_atlas(tmp_path / "features", "owner/atlas")
    assert "Every feature of a dictionary as words" in push.card
    local, remote = zp.open_atlas(tmp_path / "features"), zp.open_atlas(ADDRESS)
    assert plain(remote["L1.sae.3"]) == plain(local["L1.sae.3"])
    assert plain(remote.search([WORD], k=4)) == plain(local.search([WORD], k=4))
    assert (remote.note, remote.verdicts) == (local.note, local.verdicts)


def test_the_weights_answer_with_the_rows_of_an_atlas_on_the_hub(hub: Hub, tmp_path_factory: Any) -> None:
    local = small.built("llama+lens", tmp_path_factory)
    zp.push_atlas(local.atlas.path, "owner/atlas")
    here, there = (zp.lens_of(atlas, str(local.folder)) for atlas in (local.atlas, zp.open_atlas(ADDRESS)))
    assert plain(there["L1.ff.3"]) == plain(here["L1.ff.3"])


def test_commands_take_the_address_of_an_atlas(hub: Hub, built: Path, run: Run) -> None:
    code, out, err = run("push", built, "owner/atlas")
    assert (code, err) == (0, "")
    commit = hub.head("datasets/owner/atlas")
    assert out.startswith(f"{ADDRESS}: ")
    assert out.endswith(f"at commit {commit}.\n")
    for line in (("show", "L1.ff.3"), ("find", "babade"), ("info",), ("tour",)):
        mine, theirs = (run(line[0], where, *line[1:]) for where in (built, ADDRESS))
        assert (mine[0], theirs[0], theirs[2]) == (0, 0, "")
        if line[0] != "info":
            assert theirs[1].replace(f"{ADDRESS}@{commit}", str(built)) == mine[1]
    assert run.json("show", ADDRESS, "L1.ff.3") == run.json("show", built, "L1.ff.3")
    assert run.json("info", f"{ADDRESS}@{commit}")["atlas"] == f"{ADDRESS}@{commit}"
    code, _, err = run("show", ADDRESS, "L1.ff.3", "--svd")
    assert (code, "--svd needs the weights" in err) == (2, True)


def test_an_atlas_on_the_hub_is_served_and_exported(hub: Hub, built: Path, tmp_path: Path, run: Run) -> None:
    zp.push_atlas(built, "owner/atlas")
    contexts = open_sources(Sources(ADDRESS))
    for context in contexts:
        context.atlas.keep_index(rows_of)
    local = open_sources(Sources(built))
    pages = []
    for sources in (contexts, local):
        with serving(sources) as address:
            pages.append([httpx.get(f"{address}/{path}").text for path in ("model.json", "L1.ff.3.json")])
    assert pages[0] == pages[1]
    for where, site in ((built, "a"), (ADDRESS, "b")):
        code, _, err = run("export", where, tmp_path / site, "--most", 2, "--tokens", 3)
        assert (code, err) == (0, "")
    texts = [
        {p.relative_to(tmp_path / site): p.read_bytes() for p in (tmp_path / site).rglob("*.json")} for site in "ab"
    ]
    assert texts[0] == texts[1]


# --- Only what is needed is fetched -----------------------------------------------------------------------------------


def test_no_file_of_vectors_or_rows_is_fetched_for_a_stored_list(hub: Hub, built: Path) -> None:
    zp.push_atlas(built, "owner/atlas")
    atlas = zp.open_atlas(ADDRESS)
    assert hub.gets == ["manifest.json"]
    assert atlas.explain("L1.ff.3", k=OPTIONS.k)
    assert {name for name in hub.gets if "/" in name} == {
        f"lists/L1.{role}.parquet" for role in ("gate", "up", "value")
    }
    gets, sent = len(hub.gets), hub.sent
    assert atlas.explain("L1.ff.3", k=OPTIONS.k)
    assert (len(hub.gets), hub.sent) == (gets, sent)
    assert zp.open_atlas(ADDRESS).explain("L1.ff.3", k=OPTIONS.k)
    assert hub.sent == sent


def test_one_word_needs_no_vectors(hub: Hub, built: Path) -> None:
    zp.push_atlas(built, "owner/atlas")
    zp.open_atlas(ADDRESS).search([WORD], k=3)
    assert not [name for name in hub.gets if "/" in name]
    assert sum(hub.gets.count(name) for name in ("parameters.parquet", "tokens.parquet")) == 2


@pytest.mark.real
def test_a_word_and_a_neuron_of_a_real_atlas_need_little(hub: Hub, real_atlas: Path, monkeypatch: Any) -> None:
    """The tables are fetched once; a question then needs some hundredths of the atlas."""
    monkeypatch.setattr(HubPath, "BLOCK", 1 << 16)
    push = zp.push_atlas(real_atlas, "owner/atlas")
    atlas, local = zp.open_atlas(ADDRESS), zp.open_atlas(real_atlas)
    assert atlas.runs
    assert atlas.vocab.size
    tables = hub.sent
    assert tables < 0.05 * push.bytes
    for ask, most in ((lambda a: a["L26.ff.1189"], 0.01), (lambda a: a.find("Paris", k=10), 0.03)):
        before = hub.sent
        assert plain(ask(atlas)) == plain(ask(local))
        assert hub.sent - before < most * push.bytes


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 600)), max_size=5), st.integers(1, 700))
def test_parts_of_a_file_are_its_bytes(spans: list[tuple[int, int]], block: int) -> None:
    data = np.random.default_rng(0).bytes(4321)
    wanted = [(min(first, 4321), min(first + length, 4321)) for first, length in spans]
    with pytest.MonkeyPatch.context() as patch:
        kept: dict[int, bytes] = {}
        patch.setattr(HubPath, "BLOCK", block)
        patch.setattr(HubPath, "_request", lambda _, first, stop: data[first:stop])
        patch.setattr(HubPath, "_kept_block", lambda _, i: kept.get(i))
        patch.setattr("zeropass.checkpoints.hub_files.make_folder", lambda *_: None)
        patch.setattr(HubPath, "_keep_block", lambda _, i, content: kept.update({i: content}))
        path = HubPath(Dataset("owner/atlas", "c", {"a": 4321}), "a")
        assert path.read_parts(wanted) == [data[first:stop] for first, stop in wanted]
        assert path.read_parts(wanted) == [data[first:stop] for first, stop in wanted]
        assert all(len(content) <= block for content in kept.values())


# --- What is pushed ---------------------------------------------------------------------------------------------------


def test_a_second_push_sends_only_what_changed(hub: Hub, folder: Path, model: Path, tmp_path: Path) -> None:
    first = zp.push_atlas(folder, "owner/atlas")
    uploads = hub.uploads
    assert uploads > 50
    assert zp.push_atlas(folder, "owner/atlas").commit == first.commit
    assert hub.uploads == uploads
    small.build(model, tmp_path / "fewer", zp.Options(k=6, pairs=5, layers=(1, 2)))
    second = zp.push_atlas(tmp_path / "fewer", "owner/atlas")
    assert second.commit != first.commit
    assert hub.uploads < 2 * uploads
    assert {name for name in files_of(hub) if name.startswith("lists/L")} == {
        path.relative_to(tmp_path / "fewer").as_posix() for path in (tmp_path / "fewer" / "lists").glob("L*")
    }
    assert zp.open_atlas(ADDRESS).layers == (1, 2)
    assert ".gitattributes" in files_of(hub)


def test_an_opened_atlas_stays_at_its_commit(hub: Hub, built: Path, model: Path, tmp_path: Path) -> None:
    first = zp.push_atlas(built, "owner/atlas")
    atlas = zp.open_atlas(ADDRESS)
    expected = plain(zp.open_atlas(built)["L2.ff.3"])
    small.build(small.tuned(model, tmp_path / "tuned"), tmp_path / "other", OPTIONS)
    zp.push_atlas(tmp_path / "other", "owner/atlas")
    assert plain(atlas["L2.ff.3"]) == expected
    assert plain(zp.open_atlas(f"{ADDRESS}@{first.commit}")["L2.ff.3"]) == expected
    assert plain(zp.open_atlas(ADDRESS)["L2.ff.3"]) == plain(zp.open_atlas(tmp_path / "other")["L2.ff.3"]) != expected


def test_an_interrupted_push_changes_nothing_and_continues(hub: Hub, built: Path) -> None:
    hub.most_uploads = 5
    with pytest.raises(NotPushed, match="owner/atlas was not pushed: you may not write there"):
        zp.push_atlas(built, "owner/atlas")
    assert "manifest.json" not in files_of(hub)
    with pytest.raises(BadAtlas, match=r"owner/atlas is not an atlas \(it has no manifest\.json\)"):
        zp.open_atlas(ADDRESS)
    assert 5 <= hub.uploads < 10  # some were under way
    hub.most_uploads = None
    zp.push_atlas(built, "owner/atlas")
    large = sum(not path.name.endswith(".json") for path in built.rglob("*") if path.is_file())
    assert hub.uploads <= large
    assert zp.open_atlas(ADDRESS)["L1.ff.3"]


def test_the_card_says_what_it_is_and_an_edited_one_stays(hub: Hub, built: Path, run: Run) -> None:
    push = zp.push_atlas(built, "owner/atlas", license_id="apache-2.0")
    card = files_of(hub)["README.md"].decode()
    assert card == push.card
    assert not is_edited(card)
    assert "license: apache-2.0\n" in card
    assert "config_name: parameters\n  data_files: parameters.parquet\n  default: true" in card
    assert f'zp.open_atlas("{ADDRESS}")' in card
    assert f"schema version {SCHEMA_VERSION}" in card
    zp.push_atlas(built, "owner/atlas")
    assert "license: unknown\n" in files_of(hub)["README.md"].decode()
    for edited in (card.replace("apache-2.0", "mit"), card + "More.\n", "# Mine\n"):
        assert is_edited(edited)
        change(hub, "README.md", edited.encode())
        code, out, _ = run("push", built, "owner/atlas")
        assert (code, out.endswith("Its card was edited on the hub, so it stays as it is there.\n")) == (0, True)
        assert files_of(hub)["README.md"].decode() == edited


def test_a_card_escapes_the_names_in_an_atlas(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["name"] = "a`b<script>\n---\n[x](y)\x1b[31m"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    card = zp.push_atlas(folder, "owner/atlas", dry_run=True).card
    assert "<script>" not in card
    assert "\x1b" not in card
    assert card.count("\n---\n") == 1


def test_a_private_dataset_is_never_public(hub: Hub, built: Path, run: Run) -> None:
    zp.push_atlas(built, "owner/secret", private=True)
    assert hub.private == {"datasets/owner/secret"}
    zp.push_atlas(built, "owner/secret", private=True)
    zp.push_atlas(built, "owner/open")
    uploads = hub.uploads
    code, _, err = run("push", built, "owner/open", "--private")
    assert (code, hub.uploads) == (2, uploads)
    assert "owner/open is there already, and public" in " ".join(err.split())


def test_a_dry_run_asks_no_hub(hub: Hub, built: Path, run: Run) -> None:
    code, out, err = run("push", built, "owner/atlas", "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("---\nlicense: unknown\n")
    assert out.endswith("nothing sent.\n")
    assert run.json("push", built, "owner/atlas", "--dry-run")["commit"] == ""
    assert (hub.repos, hub.created) == ({}, [])


def test_what_is_no_complete_atlas_is_not_pushed(hub: Hub, folder: Path, tmp_path: Path, run: Run) -> None:
    def refused(message: str) -> None:
        code, out, err = run("push", folder, "owner/atlas")
        assert (code, out) == (2, "")
        assert message in " ".join(err.split())
        assert hub.created == []

    def with_file(name: str, data: bytes | None, message: str) -> None:
        path = folder / name
        kept = path.read_bytes() if path.exists() else None
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        refused(message)
        if kept is None:
            path.unlink()
        else:
            path.write_bytes(kept)

    with_file("manifest.json", None, "is not complete; run the same zeropass build again")
    with_file("plan.json", None, "lacks plan.json")
    with_file("notes.txt", b"x", "has files that do not belong to its atlas: notes.txt")
    with_file("rows/nose.npy", b"x", "do not belong to its atlas: rows/nose.npy")
    with_file(".env", b"TOKEN=x", "do not belong to its atlas: .env")
    for name in ("lists/L1.gate.parquet", "vectors/L2.q.npy", "pairs/L0.qk.parquet", "rows/token.npy", "hits.parquet"):
        data = (folder / name).read_bytes()
        with_file(name, None, f"lacks {name}")
        with_file(name, data[: len(data) // 2], "cannot be read")
        with_file(name, b"", "cannot be read")
    with_file("lists/L1.gate.parquet", (folder / "lists/L1.q.parquet").read_bytes(), "rows instead of")
    with_file("tokenizer.json", b"{", "cannot be read")
    (folder / "scratch").mkdir()
    (folder / "scratch" / "L1.gate").write_bytes(b"x")
    refused("do not belong to its atlas: scratch/L1.gate")
    shutil.rmtree(folder / "scratch")
    (folder / "rows" / "token.npy").rename(tmp_path / "token.npy")
    (folder / "rows" / "token.npy").symlink_to(tmp_path / "token.npy")
    refused("is a link, a device or a pipe")
    (folder / "rows" / "token.npy").unlink()
    os.mkfifo(folder / "rows" / "token.npy")
    refused("is a link, a device or a pipe")


@pytest.mark.parametrize("name", ["atlas", "a/b/c", "../x", "a b/c", "owner/", "", "hf://owner/x", "owner/a@main"])
def test_what_is_no_hub_id_is_not_pushed_to(name: str, built: Path) -> None:
    with pytest.raises(BadOption, match="is no hub id of a dataset"):
        zp.push_atlas(built, name, dry_run=True)


def test_an_atlas_on_the_hub_is_not_pushed(hub: Hub, built: Path) -> None:
    zp.push_atlas(built, "owner/atlas")
    with pytest.raises(BadAtlas, match="is on the hub already"):
        zp.push_atlas(ADDRESS, "owner/other")


def test_what_is_no_licence_is_refused(built: Path) -> None:
    for wrong in ("MIT License", "", "mit\nx: y"):
        with pytest.raises(BadOption, match="is no licence that a hub knows"):
            zp.push_atlas(built, "owner/atlas", license_id=wrong, dry_run=True)


@pytest.mark.parametrize(
    ("route", "status", "message"),
    [
        ("create", 401, "the hub does not know you: log in|gives you no dataset owner/atlas: log in"),
        ("create", 403, "you may not write there"),
        ("create", 404, "there is no such owner|gives you no dataset"),
        ("commit", 412, "it was changed in the meantime; push again"),
        ("commit", 429, "the hub asks to wait"),
        ("commit", 500, "push again, what arrived is kept"),
        ("batch", 500, "push again, what arrived is kept"),
        ("upload", 500, "push again, what arrived is kept"),
    ],
)
def test_a_hub_that_does_not_take_a_push_says_why(
    route: str, status: int, message: str, hub: Hub, built: Path, no_waiting: None
) -> None:
    hub.refused = {route: status}
    with pytest.raises(NotPushed, match=message):
        zp.push_atlas(built, "owner/atlas")
    assert "manifest.json" not in hub.repos.get("datasets/owner/atlas", {})


def test_no_hub_to_push_to(hub: Hub, built: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NotPushed, match="it broke off"):
        zp.push_atlas(built, "owner/atlas")


# --- What a hub may answer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("hf://datasets/", "hf://datasets/a", "hf://datasets/a/b/c", "hf://datasets/../x", "hf://datasets/a b/c"),
        *("hf://datasets/a/b@", "hf://datasets/a/b@../x", "hf://owner/model", "hf://", "s3://a/b", "https://host/a/b"),
    ],
)
def test_what_is_no_address_of_an_atlas_is_refused(address: str) -> None:
    with pytest.raises(BadAtlas, match="is no atlas on the hub; one looks like hf://datasets/owner/name@revision"):
        zp.open_atlas(address)


def test_what_the_hub_does_not_have_is_named(hub: Hub, built: Path, run: Run) -> None:
    zp.push_atlas(built, "owner/atlas")
    hub.repos["datasets/owner/gated"] = {}
    for address, message in (
        (
            "hf://datasets/owner/nothing",
            "There is no dataset owner/nothing on the hub, or it is private (then log in).",
        ),
        (f"{ADDRESS}@v9", "owner/atlas has no revision 'v9' on the hub"),
    ):
        code, out, err = run("show", address, "L1.ff.3")
        assert (code, out) == (2, "")
        assert message in " ".join(err.split())
    change(hub, "manifest.json", None)
    with pytest.raises(BadAtlas, match=r"has no manifest\.json"):
        zp.open_atlas(ADDRESS)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("everything", "answers a request for a part with status 200, not with the part"),
        ("less", "the server sent .* was asked for"),
        ("other", "the server sent .* was asked for"),
        ("late", "broke off"),
    ],
)
def test_a_server_that_does_not_send_the_part_that_was_asked_for(
    answers: str, message: str, hub: Hub, built: Path, run: Run, monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    zp.push_atlas(built, "owner/atlas")
    atlas = zp.open_atlas(ADDRESS)
    hub.answers = answers
    with pytest.raises(NotFetched, match=message) as error:
        atlas["L1.ff.3"]
    assert "owner/atlas@" in str(error.value)
    code, out, err = run("show", ADDRESS, "L1.ff.3")
    assert (code, out, "Traceback" in err) == (2, "", False)
    hub.answers = "parts"
    assert atlas["L1.ff.3"]


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "log in"), (403, "you may not read it"), (404, "broke off"), (429, "it asks to wait"), (503, "broke off")],
)
def test_a_hub_that_refuses_says_why(
    status: int, message: str, hub: Hub, built: Path, run: Run, no_waiting: None
) -> None:
    zp.push_atlas(built, "owner/atlas")
    atlas = zp.open_atlas(ADDRESS)
    hub.refused = {"resolve": status}
    with pytest.raises(NotFetched, match=f"owner/atlas.*{message}"):
        atlas["L1.ff.3"]
    for line in (("show", ADDRESS, "L1.ff.3"), ("find", ADDRESS, "babade"), ("tour", ADDRESS)):
        code, out, err = run(*line)
        assert (code, out, "Traceback" in err) == (2, "", False)
        assert "owner/atlas" in err
    hub.refused = {}
    assert atlas["L1.ff.3"]


def test_a_file_that_came_with_another_size_is_refused(hub: Hub, built: Path) -> None:
    zp.push_atlas(built, "owner/atlas")
    atlas = zp.open_atlas(ADDRESS)
    files_of(hub)["tokens.parquet"] += b"more"
    with pytest.raises(NotFetched, match=r"tokens\.parquet came with \d+ bytes; the hub's list of files says"):
        atlas.find("babade")


DAMAGE: dict[str, Callable[[zp.Atlas], Any]] = {
    "hits.parquet": lambda atlas: atlas.search([WORD]),
    "lists/L1.gate.parquet": lambda atlas: atlas["L1.ff.3"],
    "pairs/L1.vo.parquet": lambda atlas: atlas["L1.attn.2.vo"],
    "parameters.parquet": lambda atlas: atlas["L1.ff.3"],
    "tokens.parquet": lambda atlas: atlas["L1.ff.3"],
    "coherence.parquet": lambda atlas: atlas["L1.ff.3"],
    "tokenizer.json": lambda atlas: atlas.find("babadebabade zz"),
    "vectors/L1.gate.npy": lambda atlas: atlas.vector(next(r for r in atlas.runs if r.layer == 1), 3),
    "rows/token.npy": lambda atlas: atlas.rows_at("token", [3]),
    "rows/token.moments.npy": lambda atlas: atlas.moments("token"),
    "lens/lens.safetensors": lambda atlas: [atlas.vector(run, 0) for run in atlas.runs],
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("how", ["half", "noise", "empty"])
def test_a_damaged_file_on_the_hub_is_named(
    name: str, how: str, hub: Hub, tmp_path_factory: pytest.TempPathFactory
) -> None:
    zp.push_atlas(small.built("llama+lens", tmp_path_factory).atlas.path, "owner/atlas")
    data = files_of(hub)[name]
    changed = {"half": data[: len(data) // 2], "noise": b"\xff" * len(data), "empty": b""}[how]
    change(hub, name, changed)
    with pytest.raises(ZeropassError) as error:
        DAMAGE[name](zp.open_atlas(ADDRESS))
    assert f"{ADDRESS}@" in str(error.value) or "tokenizer" in name
    assert not isinstance(error.value, BadAddress)


def test_a_manifest_of_another_schema_is_refused(hub: Hub, built: Path) -> None:
    zp.push_atlas(built, "owner/atlas")
    manifest = json.loads(files_of(hub)["manifest.json"])
    for entry, message in (({"schema": 4}, "has schema version 4"), ({"lists": -1}, "lists is -1")):
        change(hub, "manifest.json", json.dumps(manifest | entry).encode())
        with pytest.raises(BadAtlas, match=message):
            zp.open_atlas(ADDRESS)
    change(hub, "manifest.json", json.dumps(manifest).encode())
    change(hub, "hits.parquet", None)
    with pytest.raises(BadAtlas, match=r"lacks hits\.parquet"):
        zp.open_atlas(ADDRESS)


def test_names_that_leave_the_folder_are_not_read(hub: Hub, built: Path) -> None:
    zp.push_atlas(built, "owner/atlas")
    for name in ("../../evil", "/etc/passwd", "lens/../../x", "a\\..\\b"):
        change(hub, name, b"x")
    path = open_dataset(ADDRESS)
    assert not [name for name in path.dataset.sizes if ".." in name or name.startswith("/")]
    assert zp.open_atlas(ADDRESS).info()["bytes"] == sum(path.dataset.sizes.values())


def test_damaged_parts_in_the_cache_are_fetched_again(hub: Hub, built: Path, tmp_path: Path) -> None:
    zp.push_atlas(built, "owner/atlas")
    expected = plain(zp.open_atlas(ADDRESS)["L1.ff.3"])
    parts = [path for path in (tmp_path / "cache" / "atlases").rglob("*") if path.is_file() and path.name.isdigit()]
    assert parts
    for path in parts:
        path.write_bytes(b"")
    next((tmp_path / "cache").rglob("sizes.json")).write_text("[")
    assert plain(zp.open_atlas(ADDRESS)["L1.ff.3"]) == expected


def test_what_was_read_is_read_without_a_hub(
    hub: Hub, built: Path, run: Run, monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    zp.push_atlas(built, "owner/atlas")
    shown = run("show", ADDRESS, "L1.ff.3")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    assert run("show", ADDRESS, "L1.ff.3") == shown
    code, out, err = run("show", ADDRESS, "L2.ff.3")
    assert (code, out) == (2, "")
    assert "owner/atlas@" in err
