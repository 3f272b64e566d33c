"""The atlas of a change: each list against a slow twin, however the change is stored, and as a user asks for it."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import zeropass as zp
from adapters import ALL, made
from commands import Run
from zeropass.arch.frame_names import space_of
from zeropass.arch.roles import side_of
from zeropass.diff.change_atlas import build_change
from zeropass.errors import BadAddress, BadAtlas, BadModel
from zeropass.model.frames import Frames
from zeropass.numerics.projection import fold_read

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

OPTIONS = zp.Options(k=6, pairs=12, tokens="all")
BIASED = {"llama-one-kv": ["q_proj", "v_proj", "up_proj", "down_proj"], "gpt2": ["c_attn", "c_fc", "c_proj"]}


def shaken(variant: str, folder: Path, seed: int = 5) -> tuple[zp.Model, zp.Model]:
    """Return a tiny model, and one in which everything differs a little, gains and biases too."""
    base = tiny.save(tiny.make(variant), folder / "base")
    hf = tiny.make(variant)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return zp.open_model(str(base)), zp.open_model(str(tiny.save(hf, folder / "tuned")))


def built(base: zp.Model, tuned: zp.Model, folder: Path) -> zp.Atlas:
    assert build_change(base, tuned, folder, OPTIONS)
    return zp.open_atlas(folder)


def test_merging_an_adapter_does_not_change_the_atlas(tmp_path: Path) -> None:
    adapted = made("llama", tmp_path, target_modules=ALL)
    unmerged = built(adapted.base, adapted, tmp_path / "one")
    merged = built(adapted.base, zp.open_model(str(tmp_path / "merged")), tmp_path / "other")
    assert unmerged["L0.ff.3"].note == ""  # lists of a change are not measured, so nothing is missing
    for address in ("L0.ff.3", "L1.ff.17", "L1.attn.2.v.5", "L0.attn.1.q.0", "L1.attn.3", "L0.attn.0"):
        for mine, theirs in zip(unmerged[address], merged[address], strict=True):
            best, rest = (r.top if hasattr(r, "top") else r.pairs for r in (mine, theirs))
            assert [entry.score for entry in best] == pytest.approx([entry.score for entry in rest], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("variant", ["llama", "llama-biased", "gpt2", "bert"])
def test_lists_are_scores_after_minus_scores_before(variant: str, tmp_path: Path) -> None:
    """Compare in the base's frames: the norm's gain counts, and z is in deviations of the lists before."""
    base, tuned = shaken(variant, tmp_path)
    atlas = built(base, tuned, tmp_path / "atlas")
    frames, after = Frames(base), Frames(tuned)
    shown = torch.from_numpy(atlas.mask("all"))
    for role in (*base.family.ff_roles, "q", "v", "o"):
        side, norm = side_of(role), "ff_norm" if role in base.family.ff_roles else "attn_norm"
        for frame in ("token", "output") if side == "read" else ("output",):
            rows = frames.rows(space_of(frame, side, 1))
            old, new = (
                side_frames.fold(model.matrix(role, 1), frame, side, norm, 1) @ rows.matrix.T
                for side_frames, model in ((frames, base), (after, tuned))
            )
            used = torch.from_numpy(base.vocab.used)
            usual = old[:, used].std(dim=1, correction=0).square().mean().sqrt()
            moved = (new - old)[:, used]
            place = f"L1.ff.4.{role}" if role in base.family.ff_roles else f"L1.attn.0.{role}.4"
            record = atlas.explain(place, frame=frame, k=6)[0]
            change = (new - old)[4]
            assert [t.score for t in record.top] == pytest.approx([float(change[t.id]) for t in record.top], abs=1e-4)
            assert record.top[0].score == pytest.approx(float(change[shown].max()), abs=1e-4)
            expected = [float((change[t.id] - moved[4].mean()) / usual) for t in record.top]
            assert [t.z for t in record.top] == pytest.approx(expected, abs=1e-4)
            assert record.spread == pytest.approx(float(moved[4].std(correction=0) / usual), rel=1e-3)
            assert record.verb.endswith(", change")


@pytest.mark.parametrize("variant", ["llama", "llama-one-kv", "llama-biased", "gpt2", "bert"])
@pytest.mark.parametrize("kind", ["qk", "vo"])
def test_pairs_are_the_best_of_the_difference_of_two_maps(variant: str, kind: str, tmp_path: Path) -> None:
    base, tuned = shaken(variant, tmp_path)
    atlas = built(base, tuned, tmp_path / "atlas")
    frames = Frames(base)
    after = frames.of(tuned)
    offset = frames.usual_offset(kind, "token")
    for head in range(base.dims.heads):
        old, new = (side_frames.head_map(1, head, kind, "token", offset) for side_frames in (frames, after))
        dense = new.left @ new.right.T - old.left @ old.right.T
        shown = torch.from_numpy(atlas.mask("all"))
        dense = dense.masked_fill(~(shown[:, None] & shown), -torch.inf)
        record = atlas.explain(f"L1.attn.{head}.{kind}", k=12)[0]
        best = dense.flatten().topk(12).values.tolist()
        assert [pair.score for pair in record.pairs] == pytest.approx(best, rel=1e-3, abs=1e-3)
        assert record.certificate.complete


@pytest.mark.parametrize("variant", sorted(BIASED))
def test_an_atlas_of_a_change_holds_only_what_changed(variant: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"fan_in_fan_out": True} if variant == "gpt2" else {}
    adapted = made(variant, tmp_path, target_modules=BIASED[variant][:1], **more)
    atlas = built(adapted.base, adapted, tmp_path / "atlas")
    assert {record.role for record in atlas["L1.attn.0"]} == ({"qk", "vo"} if variant == "gpt2" else {"qk"})
    with pytest.raises(BadAddress, match=r"L1\.ff\.3: nothing of it changed"):
        atlas["L1.ff.3"]
    with pytest.raises(BadAddress, match=r"L1\.ff\.3\.value: nothing of it changed"):
        atlas["L1.ff.3.value"]
    with pytest.raises(BadAddress, match="out of range"):
        atlas["L9.ff.3"]


def test_a_word_finds_the_neurons_that_moved_most(tmp_path: Path) -> None:
    """Rank neurons by the size of their change: in a change of rank one, all have the same list."""
    base = zp.open_model(str(tiny.save(tiny.make("llama-tied"), tmp_path / "base")))
    hf = tiny.make("llama-tied")
    direction = torch.randn(24, generator=torch.Generator().manual_seed(2))
    sizes = torch.linspace(0.01, 1, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight.add_(direction[:, None] * sizes)
    tuned = zp.open_model(str(tiny.save(hf, tmp_path / "tuned")))
    atlas = built(base, tuned, tmp_path / "atlas")
    best = sizes.argsort(descending=True)[:5].tolist()
    search = atlas.find(base.vocab.label(7), k=5)
    assert [hit.address for hit in search.hits] == [f"L1.ff.{n}" for n in best]
    assert (
        atlas.find([base.vocab.label(7), base.vocab.label(8)], side="write", k=1).hits[0].address == f"L1.ff.{best[0]}"
    )
    record = atlas[f"L1.ff.{best[-1]}"]
    assert len(record) == 1
    gain = fold_read(base.unembedding, base.vector("final_norm"), "rms")
    moved = gain[: tiny.TOKENS] @ (direction * sizes[best[-1]])
    spread = (moved - moved.mean()).abs().max()
    assert max(abs(t.score) for t in (*record[0].top, *record[0].bottom)) == pytest.approx(float(spread), rel=1e-3)


def test_a_gain_alone_changes_what_its_block_reads(tmp_path: Path) -> None:
    base = zp.open_model(str(tiny.save(tiny.make("llama"), tmp_path / "base")))
    hf = tiny.make("llama")
    with torch.no_grad():
        hf.model.layers[1].post_attention_layernorm.weight[3] *= 2
    atlas = built(base, zp.open_model(str(tiny.save(hf, tmp_path / "tuned"))), tmp_path / "atlas")
    assert {record.role for record in atlas["L1.ff.3"]} == {"gate", "up"}
    with pytest.raises(BadAddress, match="nothing of it changed"):
        atlas["L0.ff.3"]


def test_a_folder_continues_and_holds_one_change(tmp_path: Path) -> None:
    adapted = made("llama", tmp_path, target_modules=["q_proj"])
    assert build_change(adapted.base, adapted, tmp_path / "atlas", OPTIONS)
    assert not build_change(adapted.base, adapted, tmp_path / "atlas", OPTIONS)
    with pytest.raises(BadAtlas, match="holds another atlas"):
        build_change(adapted.base, zp.open_model(str(tmp_path / "merged")), tmp_path / "atlas", OPTIONS)
    facts = zp.open_atlas(tmp_path / "atlas").info()
    assert facts["change"] == {"base_sha256": adapted.base.fingerprint, "tuned_sha256": adapted.fingerprint}
    assert facts["model"]["name"] == f"{adapted.base.name} → {adapted.name}"
    with pytest.raises(BadModel, match="all parameters of"):
        build_change(adapted.base, adapted.base, tmp_path / "none", OPTIONS)
    assert not (tmp_path / "none").exists()


def test_tokens_that_only_the_fine_tune_has_are_left_out(tmp_path: Path) -> None:
    base = zp.open_model(str(tiny.save(tiny.make("llama-tied"), tmp_path / "base")))
    hf = tiny.make("llama-tied")
    hf.resize_token_embeddings(tiny.VOCAB + 4, mean_resizing=False)
    with torch.no_grad():
        hf.model.layers[0].mlp.up_proj.weight[2].add_(0.5)
    folder = tiny.save(hf, tmp_path / "tuned")
    (folder / "tokenizer.json").write_text(tiny.tokenizer_json(tiny.TOKENS + 3))
    atlas = built(base, zp.open_model(str(folder)), tmp_path / "atlas")
    assert atlas["L0.ff.2"][0].role == "up"
    assert atlas.model["vocabulary"] == tiny.VOCAB


def test_the_command_builds_and_reads_the_atlas_of_a_change(run: Run, tmp_path: Path) -> None:
    made("llama", tmp_path, target_modules=ALL)
    run.capsys.readouterr()
    out = tmp_path / "out"
    code, shown, _ = run("diff", tmp_path / "base", "--adapter", tmp_path / "adapter", "--build", "--out", out)
    assert code == 0
    assert "atlas (zeropass show, find)" in shown
    code, shown, _ = run("show", out / "atlas", "L1.ff.3", "--tokens", "all")
    assert code == 0
    assert "sees, change  its scores moved by" in shown
    code, shown, _ = run("find", out / "atlas", zp.open_atlas(out / "atlas").vocab.label(7))
    assert code == 0
    assert "L1.ff." in shown
    code, _, err = run("show", out / "atlas", "L1.ff.99")
    assert (code, "out of range" in err) == (2, True)
