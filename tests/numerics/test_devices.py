"""The same numbers on a second device, and no operation that mixes two devices.

The second device is a simulated one and, where there is one, a GPU. The simulated device (devices.py) computes on the
CPU, so its results equal those of the CPU bit for bit; those of a GPU agree up to rounding.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import adapters
import small
import twins
import zeropass as zp
from builds import contents
from devices import ELSEWHERE, elsewhere, multiply_float16
from tiny_classifiers import TEXTS, classifier, logits_of
from zeropass.atlas import build, token_rows
from zeropass.model.translation import FRAMES, KERNELS, bridge
from zeropass.numerics import half, top_k
from zeropass.numerics.projection import extremes, from_scores, keep_k, pseudo_inverse, rotate
from zeropass.numerics.statistics import kurtosis, moments, standardised
from zeropass.numerics.token_index import TokenIndex, decode
from zeropass.stitch.seam_choice import answers
from zeropass.stitch.transplant import put_level

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]

MODELS = Path(__file__).parents[2] / "models"
ADDRESSES = ("L1.ff.2", "L1.attn.2", "L1.attn.2.k.1", "L0.attn.1.qk", "L2.attn.3.vo")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture(params=["elsewhere", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    with elsewhere() if request.param == "elsewhere" else contextlib.nullcontext(torch.device("cuda")) as second:
        yield second


def same(actual: Any, expected: Any, carried: bool = False) -> None:
    """Check that tensors, numbers, records and their containers are equal, up to rounding on a GPU.

    Args:
        actual: A result from the second device.
        expected: The result of the CPU.
        carried: True if a GPU computed the tensors, through many layers, and they are on the CPU now.
    """
    if isinstance(expected, Tensor):
        bounds = {"rtol": 1e-4, "atol": 1e-4} if carried else {} if actual.is_cuda else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(actual.cpu(), expected, **bounds)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-4, abs=1e-4)
    elif isinstance(expected, dict):
        same(list(actual.items()), list(expected.items()), carried)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for item, other in zip(actual, expected, strict=True):
            same(item, other, carried)
    else:
        assert actual == expected


# --- The simulated device catches what a GPU would ----------------------------------------------------------------


MISTAKES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a product": lambda here, there: there @ here,
    "a sum": lambda here, there: there + here,
    "numbers made here": lambda here, there: there + torch.arange(3),
    "a mask made here": lambda here, there: torch.where(here > 0, there, torch.zeros_like(there)),
    "joined": lambda here, there: torch.cat((here, there)),
    "written into": lambda here, there: here.add_(there),
    "as a result": lambda here, there: torch.mm(there, there, out=here),
    "part by part": lambda here, there: torch.take_along_dim(there, here.argsort(1), 1),
    "an index": lambda here, there: here[there[:, 0].long()],
    "rows picked": lambda here, there: there.index_select(0, torch.tensor([1])),
    "put in": lambda here, there: there.index_put((torch.tensor([1]),), here[0]),
    "a lone number there": lambda here, there: here * there.sum(),
    "numpy": lambda here, there: there.numpy(),
    "numpy, unasked": lambda here, there: np.asarray(there),
    "a generator": lambda here, there: torch.randn(3, generator=torch.Generator(), device=there.device),
}

RIGHT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "carried": lambda here, there: there.cpu() @ here,
    "carried there": lambda here, there: there @ here.to(there.device),
    "copied": lambda here, there: there.clone().copy_(here),
    "a number": lambda here, there: there * torch.tensor(2.0) + 1,
    "a lone number here": lambda here, there: there * here.sum(),
    "rows by ids here": lambda here, there: there[torch.tensor([2, 0])],
    "rows by a list": lambda here, there: there[[2, 0]],
    "written in place": lambda here, there: there.clone().mul_(2)[1:].zero_(),
    "made there": lambda here, there: (
        there + torch.arange(3, device=there.device) + torch.tensor([1], device=there.device)
    ),
    "a conjugate": lambda here, there: (torch.complex(there, there.T).conj() * there).imag,
    "without gradients": torch.inference_mode()(lambda here, there: there.cpu().add_(1) + here.to(here.device)),
    "a row of it": lambda here, there: there[0] @ there,
    "out": lambda here, there: torch.abs(there, out=torch.empty_like(there)),
}


@pytest.fixture
def square() -> Tensor:
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_caught(mistake: Callable[[Tensor, Tensor], Any], square: Tensor) -> None:
    mistake(square.clone(), square.clone())  # it is correct on one device
    with elsewhere() as there, pytest.raises(RuntimeError):
        mistake(square.clone(), square.to(there))


@pytest.mark.parametrize("right", RIGHT.values(), ids=RIGHT)
def test_correct_code_gives_the_same_numbers(
    right: Callable[[Tensor, Tensor], Tensor], square: Tensor, device: torch.device
) -> None:
    same(right(square.clone(), square.to(device)), right(square.clone(), square.clone()))


def test_tensors_stay_where_they_were_made() -> None:
    with elsewhere() as there:
        tensor = torch.zeros(4, 2, device=there)
        tensor[1:, 0] = 3
        assert {x.device for x in (tensor, tensor.T, tensor.double(), tensor[tensor > 0], tensor.topk(1).values)} == {
            ELSEWHERE
        }
        assert tensor.tolist() == [[0, 0], [3, 0], [3, 0], [3, 0]]
        assert float(tensor.sum()) == 9
        assert tensor.cpu().numpy().sum() == 9


def test_a_build_that_leaves_rows_behind_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same mistake passes on the CPU."""
    held = token_rows.Spaces._in_memory
    left = lambda *args: replace(space := held(*args), rows=space.rows.cpu())  # noqa: E731
    monkeypatch.setattr(token_rows.Spaces, "_in_memory", left)
    monkeypatch.setattr(build, "ahead", map)  # the simulated device exists in one thread only
    model, options = str(small.llama(tmp_path / "model", layers=1)), zp.Options(k=3, pairs=3)
    assert zp.build(zp.open_model(model), tmp_path / "here", options)
    with elsewhere() as there, pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        zp.build(zp.open_model(model, device=there), tmp_path / "there", options)


# --- The numerics -------------------------------------------------------------------------------------------------


def numbers(move: Callable[[Tensor], Tensor]) -> list[Any]:
    """Return what the numerics compute from random rows and vectors on the device to which ``move`` moves them."""
    draw = torch.Generator().manual_seed(0)
    rows, vectors = move(torch.randn(300, 16, generator=draw)), move(torch.randn(40, 16, generator=draw))
    keep = move(torch.rand(300, generator=draw) < 0.8)
    of_rows = moments(rows, keep)
    mean, std = of_rows.of_scores(vectors)
    z = standardised(vectors, std) @ (rows - of_rows.mean.float()).T
    best, offsets = extremes(z, 5, keep.nonzero()[:, 0].repeat(2)[:300]), move(torch.arange(40))
    product = zp.Factored(rows, vectors)
    directions = product.svd(4)
    pairs = [zp.top_pairs(product, 9, left_mask=keep, largest=largest) for largest in (True, False)]
    frequencies = move(torch.tensor([1.0, 0.1, 0.01]))
    return [
        *(of_rows.mean, of_rows.covariance, mean, std, kurtosis(z)),
        *(best.top, best.top_ids, best.bottom, best.bottom_ids),
        *(pseudo_inverse(rows), keep_k(z, 3), from_scores(z, rows, 3)),
        *(rotate(vectors, 3, frequencies), rotate(vectors, offsets, frequencies)),
        *(directions.values, product.inner(product), product.reduced().left.abs()),
        *([top.left, top.right, top.scores, top.kth, top.complete] for top in pairs),
    ]


def test_numerics_are_the_same(device: torch.device) -> None:
    here = numbers(lambda x: x)
    there = numbers(lambda x: x.to(device))
    for expected, actual in zip(here, there, strict=True):
        assert not isinstance(expected, Tensor) or actual.device.type == device.type
        same(actual, expected)


def index_entries(device: torch.device) -> list[Tensor]:
    """Return the entries of an index that blocks fill until places overflow, and of a second that continues from it."""
    draw = torch.Generator().manual_seed(0)
    index, resumed = TokenIndex(50, 7, device), TokenIndex(50, 7, device)
    for first in range(0, 1600, 400):
        index.offer(torch.randn(400, 50, generator=draw).to(device), first)
    for tokens, keys in index.entries(0, 900):
        resumed.add(tokens, keys)
    resumed.flush()
    entries = [tensor for either in (index, resumed) for part in either.entries(0, 1600) for tensor in part]
    return [*entries, *decode(index.keys)]


def test_the_index_of_tokens_is_the_same(device: torch.device) -> None:
    same(index_entries(device), index_entries(torch.device("cpu")))


def surveyed(device: torch.device) -> list[Tensor]:
    """Return what a survey keeps when it multiplies float16, as on a GPU."""
    draw = torch.Generator().manual_seed(0)
    rows, vectors = (torch.randn(n, 24, generator=draw).to(device) for n in (900, 600))
    ready, index = top_k.prepare_rows(rows - rows.mean(0), moments(rows).covariance), TokenIndex(900, 5, device)
    assert ready.coarse is not None
    survey = top_k.survey(vectors, ready, 7, torch.arange(900, device=device), index, 0)
    return [*vars(survey.extremes).values(), survey.kurtosis, *index.ranked()]


def test_products_in_float16_are_the_same(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_float16(monkeypatch)
    monkeypatch.setattr(half, "_FIRST", 128)
    actual, expected = surveyed(device), surveyed(torch.device("cpu"))
    if device.type == "cuda":  # its kurtosis is that of rounded scores, summed in another order
        torch.testing.assert_close(actual.pop(4).cpu(), expected.pop(4), rtol=1e-2, atol=1e-3)
    same(actual, expected)


# --- End to end ---------------------------------------------------------------------------------------------------


@pytest.fixture
def all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make both devices compute all scores; test_top_k.py checks that quantized products find the same."""
    monkeypatch.setattr(top_k, "numba_kernels", None)
    monkeypatch.setattr(build, "behind", at_once)  # the simulated device exists in one thread only
    monkeypatch.setattr(build, "ahead", map)


@contextlib.contextmanager
def at_once() -> Iterator[Callable[[Callable[[], None]], None]]:
    yield lambda work: work()


@pytest.mark.usefixtures("all_scores")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_an_atlas_is_the_same(kind: str, device: torch.device, tmp_path: Path) -> None:
    model, options = str(small.VARIANTS[kind](tmp_path / "model")), zp.Options(k=5, pairs=9, layers=(0, 1))
    for name, on in (("here", "cpu"), ("there", device)):
        assert zp.build(zp.open_model(model, device=on), tmp_path / name, options)
    here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
    assert here.keys() == there.keys()
    assert here == there or device.type == "cuda"
    for path in (tmp_path / "here").rglob("*.npy"):
        other = np.load(tmp_path / "there" / path.relative_to(tmp_path / "here"))
        np.testing.assert_allclose(other, np.load(path), rtol=1e-4, atol=1e-4)


def records(lens: zp.Lens) -> list[Any]:
    """Return the records of a lens, JSON-ready, without the bounds of certificates, which depend on the search."""
    svd = lens.svd("L1.attn.2.vo", k=3)
    maps = [zp.pairs_with(lens, "L1.attn.2.vo", lens.head_map("L1.attn.2.vo"), 0, **options) for options in FILTERS]
    explained = [record.to_json() for address in ADDRESSES for record in lens.explain(address, k=6)]
    for record in explained:
        record.get("certificate", {}).pop("bound", None)
    return [*explained, [direction.value for direction in svd.directions], [record.to_json() for record in maps]]


FILTERS: tuple[dict[str, Any], ...] = (
    {"left": [300], "k": 5},
    {"right": [301, 302], "k": 5},
    {"left": [300], "right": [301]},
)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_lens_gives_the_same_records(kind: str, device: torch.device, tmp_path: Path) -> None:
    model = str(small.VARIANTS[kind](tmp_path / "model"))
    same(records(zp.load(model, device=device)), records(zp.load(model)))


def test_two_models_compare_the_same(device: torch.device, tmp_path: Path) -> None:
    names = [str(small.llama(tmp_path / f"{seed}", seed, layers=1)) for seed in (0, 1)]
    results = []
    for on in ("cpu", device):
        models = [zp.open_model(name, device=on) for name in names]
        aligned = zp.align_models(*models, tmp_path / f"aligned-{torch.device(on).type}")
        pair = zp.pair_of(*models)
        matched = [zp.match(pair, address, k=3).to_json() for address in ("L0.ff.2", "L0.attn.3", "L0.attn.2.k.1")]
        results.append([asdict(aligned), matched, zp.compare(*models).to_json()])
    same(results[1], results[0])


@pytest.mark.usefixtures("all_scores")
def test_the_atlas_of_a_change_is_the_same(device: torch.device, adapted: zp.Adapted, tmp_path: Path) -> None:
    options = zp.Options(k=3, pairs=3, tokens="all")
    for name, on in (("here", "cpu"), ("there", device)):
        base = zp.open_model(adapted.base.name, device=on)
        assert zp.build_change(base, zp.adapt(base, adapted.adapters[0].path), tmp_path / name, options)
    assert contents(tmp_path / "here") == contents(tmp_path / "there") or device.type == "cuda"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(MODELS / "first", tmp_path_factory.mktemp("tuned") / "model")


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twins.twin(zp.open_model(str(MODELS / "first")), 4, tmp_path_factory.mktemp("twin") / "model")[0]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> zp.Adapted:
    return adapters.made("llama", tmp_path_factory.mktemp("adapter"), target_modules=adapters.ALL)


def test_an_adapter_changes_the_same(device: torch.device, adapted: zp.Adapted) -> None:
    base = zp.open_model(adapted.base.name, device=device)
    there = zp.compare(base, zp.adapt(base, adapted.adapters[0].path))
    same(there.to_json(), zp.compare(adapted.base, adapted).to_json())


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_translation_is_the_same(kernel: str, device: torch.device) -> None:
    results = []
    for on in ("cpu", device):
        across = bridge(*(zp.open_model(str(MODELS / name), device=on) for name in ("first", "second")))
        results.append([(map_.weight, map_.bias) for map_ in (across.translation(kernel, frame) for frame in FRAMES)])
    same(results[1], results[0])


def test_a_stitch_and_a_transplant_are_the_same(device: torch.device, tuned: Path, moved: Path) -> None:
    results = []
    for on in ("cpu", device):
        models = [zp.open_model(str(name), device=on) for name in (tuned, moved, MODELS / "first")]
        stitch, _ = zp.stitch_models(*models[:2], keep=2, take=2)
        plant, _ = zp.transplant(*models, strength=1)
        reply = answers(plant, models[1], TEXTS[:9])
        put_level(plant, torch.tensor([1.0, -1.0]), reply.read)
        results.append([reply.logits, *(logits_of(hf, models[1], TEXTS[:9]) for hf in (stitch, plant))])
    same(results[1], results[0], carried=device.type == "cuda")
