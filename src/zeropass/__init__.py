"""Read the weights of a Transformer and say in words what each parameter does.

::

    import zeropass as zp

    lens = zp.load("smollm2-135m")          # a demo name, a folder, a .gguf file or a hub id
    lens["L26.ff.1189"]                     # records of what a neuron sees, is about to say and writes
    atlas = zp.open_atlas("demo/atlas")     # after: zeropass build MODEL --out demo/atlas
    atlas.find("Paris")

Names are imported when they are first used, so that reading an atlas does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zeropass.errors import ZeropassError

if TYPE_CHECKING:
    from zeropass.align.alignment_folder import read_alignment
    from zeropass.align.match import match
    from zeropass.align.pair import pair_of
    from zeropass.align.results import Alignment
    from zeropass.align.run import align_models
    from zeropass.atlas.budget import parse_size
    from zeropass.atlas.build import build
    from zeropass.atlas.cluster import build_on_cluster
    from zeropass.atlas.read import Atlas, open_atlas
    from zeropass.atlas.schema import Options
    from zeropass.atlas.share import Push, push_atlas
    from zeropass.atlas.weights import lens_of
    from zeropass.circuits.results import Feeds, HeadPairs, InductionHeads, WordPaths
    from zeropass.circuits.run import feeds, head_pairs, induction_heads, paths
    from zeropass.diff.against import against
    from zeropass.diff.against_folder import write_against
    from zeropass.diff.against_results import Against
    from zeropass.diff.change_atlas import build_change
    from zeropass.diff.diff_folder import write_diff
    from zeropass.diff.monitor import fired_passages
    from zeropass.diff.results import Diff
    from zeropass.diff.run import compare
    from zeropass.diff.screen import screen
    from zeropass.diff.screen_results import Screening, thresholds_of
    from zeropass.diff.thresholds import write_thresholds
    from zeropass.evidence.proof import prove
    from zeropass.evidence.results import Evidence, read_evidence
    from zeropass.evidence.run import collect_evidence
    from zeropass.heads.results import HeadCatalogue
    from zeropass.heads.run import catalogue_heads
    from zeropass.labels.results import Labels
    from zeropass.labels.run import kept_labels, label
    from zeropass.lens import Lens, load, pairs_with
    from zeropass.mcp.server import serve_mcp
    from zeropass.model.adapted import Adapted, adapt
    from zeropass.model.address import Address, parse
    from zeropass.model.calibrate import calibrate
    from zeropass.model.dictionaries import Dictionary, open_dictionary
    from zeropass.model.frames import Frames
    from zeropass.model.lens_maps import LensMaps, read_lens
    from zeropass.model.model import Model
    from zeropass.model.opening import open_model, open_tuned
    from zeropass.model.translation import bridge, translate
    from zeropass.numerics.factored import Factored
    from zeropass.numerics.top_pairs import TopPairs, top_pairs
    from zeropass.records.proofs import Proof
    from zeropass.relations.results import Relations
    from zeropass.relations.run import relation
    from zeropass.stitch.results import Stitch
    from zeropass.stitch.run import StitchOptions, stitch_models, transplant
    from zeropass.stitch.stitched import classify, load_stitched
    from zeropass.web.app import serve
    from zeropass.web.export import Chosen, export_site
    from zeropass.web.load import Sources, open_sources

__all__ = [
    "Adapted",
    "Address",
    "Against",
    "Alignment",
    "Atlas",
    "Chosen",
    "Dictionary",
    "Diff",
    "Evidence",
    "Factored",
    "Feeds",
    "Frames",
    "HeadCatalogue",
    "HeadPairs",
    "InductionHeads",
    "Labels",
    "Lens",
    "LensMaps",
    "Model",
    "Options",
    "Proof",
    "Push",
    "Relations",
    "Screening",
    "Sources",
    "Stitch",
    "StitchOptions",
    "TopPairs",
    "WordPaths",
    "ZeropassError",
    "__version__",
    "adapt",
    "against",
    "align_models",
    "bridge",
    "build",
    "build_change",
    "build_on_cluster",
    "calibrate",
    "catalogue_heads",
    "classify",
    "collect_evidence",
    "compare",
    "export_site",
    "feeds",
    "fired_passages",
    "head_pairs",
    "induction_heads",
    "kept_labels",
    "label",
    "lens_of",
    "load",
    "load_stitched",
    "match",
    "open_atlas",
    "open_dictionary",
    "open_model",
    "open_sources",
    "open_tuned",
    "pair_of",
    "pairs_with",
    "parse",
    "parse_size",
    "paths",
    "prove",
    "push_atlas",
    "read_alignment",
    "read_evidence",
    "read_lens",
    "relation",
    "screen",
    "serve",
    "serve_mcp",
    "stitch_models",
    "thresholds_of",
    "top_pairs",
    "translate",
    "transplant",
    "write_against",
    "write_diff",
    "write_thresholds",
]

__version__ = "0.1.0"

_NAMES_BY_MODULE = {
    "zeropass.model.adapted": ("Adapted", "adapt"),
    "zeropass.model.address": ("Address", "parse"),
    "zeropass.align.run": ("align_models",),
    "zeropass.align.match": ("match",),
    "zeropass.align.pair": ("pair_of",),
    "zeropass.align.results": ("Alignment",),
    "zeropass.align.alignment_folder": ("read_alignment",),
    "zeropass.atlas.budget": ("parse_size",),
    "zeropass.atlas.build": ("build",),
    "zeropass.atlas.cluster": ("build_on_cluster",),
    "zeropass.atlas.read": ("Atlas", "open_atlas"),
    "zeropass.atlas.schema": ("Options",),
    "zeropass.atlas.share": ("Push", "push_atlas"),
    "zeropass.atlas.weights": ("lens_of",),
    "zeropass.circuits.results": ("Feeds", "HeadPairs", "InductionHeads", "WordPaths"),
    "zeropass.circuits.run": ("feeds", "head_pairs", "induction_heads", "paths"),
    "zeropass.diff.against": ("against",),
    "zeropass.diff.against_folder": ("write_against",),
    "zeropass.diff.against_results": ("Against",),
    "zeropass.diff.change_atlas": ("build_change",),
    "zeropass.diff.run": ("compare",),
    "zeropass.diff.monitor": ("fired_passages",),
    "zeropass.diff.screen": ("screen",),
    "zeropass.diff.screen_results": ("Screening", "thresholds_of"),
    "zeropass.diff.thresholds": ("write_thresholds",),
    "zeropass.diff.results": ("Diff",),
    "zeropass.diff.diff_folder": ("write_diff",),
    "zeropass.evidence.proof": ("prove",),
    "zeropass.records.proofs": ("Proof",),
    "zeropass.relations.results": ("Relations",),
    "zeropass.relations.run": ("relation",),
    "zeropass.evidence.run": ("collect_evidence",),
    "zeropass.evidence.results": ("Evidence", "read_evidence"),
    "zeropass.numerics.factored": ("Factored",),
    "zeropass.model.calibrate": ("calibrate",),
    "zeropass.model.dictionaries": ("Dictionary", "open_dictionary"),
    "zeropass.model.frames": ("Frames",),
    "zeropass.model.lens_maps": ("LensMaps", "read_lens"),
    "zeropass.heads.results": ("HeadCatalogue",),
    "zeropass.heads.run": ("catalogue_heads",),
    "zeropass.labels.results": ("Labels",),
    "zeropass.labels.run": ("kept_labels", "label"),
    "zeropass.lens": ("Lens", "load", "pairs_with"),
    "zeropass.model.model": ("Model",),
    "zeropass.model.opening": ("open_model", "open_tuned"),
    "zeropass.numerics.top_pairs": ("TopPairs", "top_pairs"),
    "zeropass.stitch.run": ("StitchOptions", "stitch_models", "transplant"),
    "zeropass.stitch.results": ("Stitch",),
    "zeropass.stitch.stitched": ("classify", "load_stitched"),
    "zeropass.model.translation": ("bridge", "translate"),
    "zeropass.web.export": ("Chosen", "export_site"),
    "zeropass.web.app": ("serve",),
    "zeropass.mcp.server": ("serve_mcp",),
    "zeropass.web.load": ("Sources", "open_sources"),
}
_MODULES = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'zeropass' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
