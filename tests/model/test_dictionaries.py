"""Features of dictionaries: as directions of the stream at the place where they read and write, and in words."""

from pathlib import Path

import pytest
import torch

import dictionaries
import small
import zeropass as zp
from commands import Run
from scripts import ROOT, imported
from zeropass.errors import BadAddress, BadDictionary, BadOption
from zeropass.model.dictionaries import feature_address
from zeropass.model.directions import Where
from zeropass.records.parameters import VectorRecord

(script,) = imported(ROOT / "reproduce", ["dictionary"])

N = 40
ENCODERS, DECODERS = torch.randn(2, N, small.D, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> zp.Lens:
    model = zp.open_model(small.llama(tmp_path_factory.mktemp("model")))
    return zp.load(model, lens=zp.calibrate(model, source="random", tokens=256))


@pytest.mark.parametrize(
    ("hook", "read", "write"),
    [
        ("blocks.1.hook_resid_pre", (1, "block"), (1, "block")),
        ("blocks.1.hook_resid_mid", (1, "mid"), (1, "mid")),
        ("blocks.1.hook_resid_post", (2, "block"), (2, "block")),
        ("blocks.2.hook_resid_post", (3, "block"), (3, "block")),
        ("blocks.1.hook_mlp_out", None, (2, "block")),
        ("blocks.1.hook_attn_out", None, (1, "mid")),
        ("hook_embed", (0, "block"), (0, "block")),
        ("layers.1", (2, "block"), (2, "block")),
        ("model.layers.1.mlp", None, (1, "ff")),
        ("layers.1.self_attn", None, (1, "attn")),
    ],
)
def test_a_feature_is_a_direction_at_its_place(
    hook: str, read: tuple[int, Where] | None, write: tuple[int, Where], lens: zp.Lens, tmp_path: Path
) -> None:
    dictionary = zp.open_dictionary(lens.model, dictionaries.saelens(tmp_path / "sae", ENCODERS, DECODERS, hook))
    (layer,) = dictionary.files
    records = lens.feature(dictionary, f"L{layer}.sae.7", k=5)
    expected = []
    if read:
        expected += lens.direction(ENCODERS[7], layer=read[0], side="read", at=read[1], k=5)
    expected += lens.direction(DECODERS[7], layer=write[0], side="write", at=write[1], k=5)
    for record, other in zip(records, expected, strict=True):
        assert isinstance(record, VectorRecord)
        assert isinstance(other, VectorRecord)
        assert (record.address, record.evidence) == (f"L{layer}.sae.7", None)
        assert record.role == ("encoder" if record.side == "read" else "decoder")
        assert (record.frame, record.top, record.coherence) == (other.frame, other.top, other.coherence)
    assert "does not say which weights it belongs to" in records.note
    assert ("encoders have no lists" in records.note) == (read is None)


def test_a_transcoder_reads_behind_the_norm_and_writes_before_it(lens: zp.Lens, tmp_path: Path) -> None:
    folder = dictionaries.transcoders(tmp_path, [(ENCODERS, DECODERS), (DECODERS, ENCODERS.T)])
    features = lens.features(folder)
    assert len(features) == 2 * N
    assert features.addresses[N] == "L1.sae.0"
    encoder, decoder = features[N + 3][:1], features[N + 3][-1:]
    gate = lens.direction(DECODERS[3], layer=1, side="read", at="ff")
    assert encoder[0].top == gate[0].top
    assert decoder[0].top == lens.direction(ENCODERS[3], layer=1, side="write", at="ff")[-1].top


def test_a_cross_layer_transcoder_writes_at_every_later_layer(lens: zp.Lens, tmp_path: Path) -> None:
    later = torch.randn(N, 3, small.D)
    folder = dictionaries.cross_layer(tmp_path, [(ENCODERS, later), (ENCODERS, later[:, 1:]), (ENCODERS, later[:, 2:])])
    dictionary = zp.open_dictionary(lens.model, folder)
    records = lens.feature(dictionary, "L0.sae.7", frame="effect")
    assert [record.role for record in records] == ["decoder.0", "decoder.1", "decoder.2"]
    for layer, record in enumerate(records):
        (direction,) = lens.direction(later[7, layer], layer=layer + 1, side="write", frame="effect")
        assert record.top == direction.top
    assert [record.role for record in lens.feature(dictionary, "L1.sae.7.decoder.2")] == ["decoder.2"] * 2
    assert [record.role for record in lens.feature(dictionary, "L2.sae.7")][-1] == "decoder"
    (encoder,) = lens.feature(dictionary, "L1.sae.7.encoder", frame="seen")
    assert encoder.top == lens.direction(ENCODERS[7], layer=1, side="read", at="mid", frame="seen")[0].top
    with pytest.raises(BadAddress, match=r"L1\.sae\.7\.decoder\.0: it has encoder, decoder\.1, decoder\.2"):
        lens.feature(dictionary, "L1.sae.7.decoder.0")
    assert "writes at blocks.0.hook_mlp_out to blocks.2.hook_mlp_out" in dictionary.note
    assert len(lens.features(dictionary).strongest(2)) == 2
    for layer in dictionary.files:
        of_layer = [a for a in lens.features(dictionary).addresses if a.startswith(f"L{layer}.")]
        assert list(lens.features(dictionary, layer=layer).addresses) == of_layer
    with pytest.raises(BadAddress, match="no features of layer 99"):
        lens.features(dictionary, layer=99)


def test_a_dictionary_of_heads_writes_through_their_output(lens: zp.Lens, tmp_path: Path) -> None:
    width = lens.model.dims.heads * lens.model.dims.head_dim
    decoders = torch.randn(N, width)
    folder = dictionaries.saelens(
        tmp_path, torch.randn(N, width), decoders, "blocks.1.attn.hook_z", reshape_activations="hook_z"
    )
    record = lens.features(folder)[5][-1]
    written = decoders[5] @ lens.model.matrix("o", 1)
    assert record.top == lens.direction(written, layer=1, side="write", at="attn")[-1].top


def test_a_normed_input_has_no_mean(tmp_path: Path, lens: zp.Lens) -> None:
    folder = dictionaries.saelens(tmp_path, ENCODERS + 1, DECODERS, normalize_activations="layer_norm")
    record = lens.features(folder)[2][1]
    centred = ENCODERS - ENCODERS.mean(1, keepdim=True)
    direction = lens.direction(centred[2], layer=1, side="read")[1]
    assert [token.id for token in record.top] == [token.id for token in direction.top]


def test_the_strongest_features_come_first(lens: zp.Lens, tmp_path: Path) -> None:
    """Hold the order against the lists themselves."""
    features = lens.features(dictionaries.saelens(tmp_path, ENCODERS, DECODERS))
    strengths = {
        address: max(
            max(record.top[9].z, -record.bottom[9].z)
            for record in records
            if isinstance(record, VectorRecord) and len(record.top) > 9
        )
        for address, records in zip(features.addresses, features, strict=True)
    }
    order = sorted(strengths, key=lambda address: -strengths[address])
    assert [*features.strongest(5).addresses] == order[:5]
    assert set(features.to_pandas().role) == {"encoder", "decoder"}


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("blocks.3.hook_resid_pre", "is for layer 3; .* has layers 0 to 2"),
        ("blocks.1.hook_q", "blocks.1.hook_q is not one of the places that are known: hook_resid_pre"),
        ("blocks.1.ln2.hook_normalized", "nothing is written at blocks.1.ln2.hook_normalized"),
        ("blocks.1.attn.hook_z", "encoders of width 20; .* has 32 at blocks.1.attn.hook_z"),
        ("blocks.1.hook_resid_pre", "encoders of width 20; .* has 32 at blocks.1.hook_resid_pre"),
    ],
)
def test_dictionaries_of_other_models_are_refused(hook: str, words: str, lens: zp.Lens, tmp_path: Path) -> None:
    wide = hook.endswith(("resid_pre", "hook_z")) and ".3." not in hook
    width = 20 if wide else small.D
    with pytest.raises(BadDictionary, match=words):
        lens.features(dictionaries.saelens(tmp_path, torch.randn(N, width), torch.randn(N, width), hook))


def test_models_with_norms_behind_their_layers_are_refused(tmp_path: Path) -> None:
    model = zp.open_model(small.bert(tmp_path / "model"))
    with pytest.raises(BadDictionary, match="decoders with norms before each layer"):
        zp.open_dictionary(model, dictionaries.saelens(tmp_path / "sae", ENCODERS, DECODERS))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("L1.sae.40", "features 0 to 39"),
        ("L2.sae.0", "no features of layer 2; it has those of 1"),
        ("L1.sae.3.gate", "is not an address"),
        ("L1.ff.3", "is a parameter of the model; a feature looks like L12.sae.4051"),
    ],
)
def test_addresses_of_no_feature_are_refused(address: str, words: str, lens: zp.Lens, tmp_path: Path) -> None:
    dictionary = zp.open_dictionary(lens.model, dictionaries.saelens(tmp_path, ENCODERS, DECODERS))
    with pytest.raises(BadAddress, match=words):
        lens.feature(dictionary, address)


def test_an_encoder_that_reads_no_token_is_refused(lens: zp.Lens, tmp_path: Path) -> None:
    folder = dictionaries.saelens(tmp_path, ENCODERS, DECODERS, "blocks.1.hook_mlp_out")
    dictionary = zp.open_dictionary(lens.model, folder)
    with pytest.raises(BadAddress, match=r"L1\.sae\.0\.encoder: at blocks\.1\.hook_mlp_out no state of a token"):
        lens.feature(dictionary, "L1.sae.0.encoder")
    with pytest.raises(BadOption, match="no list in the seen frame"):
        lens.feature(dictionary, "L1.sae.0", frame="seen")
    assert str(feature_address(" L1.sae.0.decoder ")) == "L1.sae.0"


def test_the_command_line_shows_features(tmp_path: Path, run: Run) -> None:
    model = str(small.llama(tmp_path / "model"))
    folder = str(dictionaries.saelens(tmp_path / "sae", ENCODERS, DECODERS))
    code, out, err = run("show", model, "L1.sae.7", "--features", folder, "-k", "3")
    assert code == 0, err
    assert "L1.sae.7 encoder  sees" in out
    assert "L1.sae.7 decoder  writes" in out
    assert "Features of a dictionary (SAELens, made for first)" in " ".join(out.split())
    for arguments, words in (
        (("L1.sae.7", "--hook", "blocks.1.hook_resid_pre"), "--hook is about --features"),
        (("--features", folder, "--vector", "x.npy", "--layer", "1"), "give one of them"),
        (("L1.sae.7", "--features", folder, "--svd"), "--svd is for head maps"),
        (("--features", folder), "An address is needed"),
        (("L1.sae.7",), "L1.sae.7 is a feature of a dictionary"),
        (("L1.sae.7", "--features", model), "holds no dictionary"),
    ):
        code, out, err = run("show", model, *arguments)
        assert (code, out) == (2, ""), arguments
        assert words in " ".join(err.split()), (arguments, err)


def test_the_words_of_trained_features_are_those_that_activate_them(tmp_path: Path) -> None:
    """Compare what features see with the tokens of another text that they react to."""
    model, layer = zp.open_model("models/first"), 2
    tensors, left = script.trained(script.states_of(model, layer, 48, seed=1)[1], count=256, steps=300)
    assert left < 0.5
    script.write(tmp_path, tensors, "first", layer)
    lens = zp.load(model, lens=zp.calibrate(model, tokens=3072))
    dictionary = zp.open_dictionary(model, tmp_path)
    right, wrong = script.agreement(lens, dictionary, layer, *script.states_of(model, layer, 48, seed=99))
    assert right > 0.6
    assert abs(wrong) < 0.2


def test_the_dictionary_in_the_repository_is_read() -> None:
    records = zp.load("models/first", lens=None).features("models/dictionary")[3]
    assert [record.role for record in records] == ["encoder", "encoder", "decoder"]
