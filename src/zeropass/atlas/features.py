"""The atlas of a dictionary: the features of sparse autoencoders and transcoders as lists of a model's tokens.

Features have the layer and the roles of their addresses (``L12.sae.4051``, ``encoder`` and ``decoder``). They are
folded like the parameters that read or write at the same place, and compared with these: with random directions of
them, and in the frame ``distinctive`` with what they write.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from zeropass.atlas.jobs import Runner
from zeropass.atlas.schema import Job, Options, file_name
from zeropass.checkpoints.model_files import fingerprint
from zeropass.errors import BadOption
from zeropass.model.dictionaries import Dictionary
from zeropass.model.vectors import SetFacts, VectorSet, vector_set
from zeropass.numerics.statistics import standardised

__all__ = ["FeatureRunner", "dictionary_facts", "plan_features"]


def plan_features(dictionary: Dictionary, options: Options) -> tuple[Options, list[Job]]:
    """Return the jobs of a build, one for each layer and role of a dictionary, and its options with a range of layers.

    Raises:
        BadOption: The dictionary has no such layers or roles.
    """
    layers = list(dictionary.files)
    first, stop = options.layers or (layers[0], layers[-1] + 1)
    chosen = [layer for layer in layers if first <= layer < stop]
    if not chosen:
        raise BadOption(f"--layers {first}:{stop}: the dictionary has features of {', '.join(map(str, layers))}.")
    known = {role: None for layer in chosen for role in dictionary.roles(layer)}
    asked = options.roles or tuple(known)
    matches = {name: [role for role in known if role == name or role.startswith(f"{name}.")] for name in asked}
    if unknown := [name for name, roles in matches.items() if not roles]:
        raise BadOption(f"--roles: the features have no {', '.join(unknown)}; they have {', '.join(known)}.")
    wanted = {role for roles in matches.values() for role in roles}
    jobs = [Job(layer, (role,)) for layer in chosen for role in dictionary.roles(layer) if role in wanted]
    return replace(options, layers=(first, stop)), jobs


def dictionary_facts(dictionary: Dictionary, jobs: list[Job]) -> dict[str, Any]:
    """Return the entry of a plan about a dictionary: a note, the hash of its vectors, and what each set is like."""
    vectors = [vectors for file in dictionary.files.values() for vectors in (file.encoder, *file.decoders)]
    return {
        "note": dictionary.note,
        "sha256": fingerprint([Path(path) for path in dict.fromkeys(each.source.path for each in vectors)]),
        "like": {
            file_name(job.layer, role): list(dictionary.like(job.layer, role)) for job in jobs for role in job.roles
        },
    }


class FeatureRunner(Runner):
    """A runner of the jobs of a dictionary.

    Attributes:
        dictionary: The dictionary.
    """

    def __init__(self, dictionary: Dictionary, *arguments: Any) -> None:
        self.dictionary = dictionary
        self._peers: dict[tuple[int, str, str], Tensor] = {}
        super().__init__(dictionary.model, *arguments)

    def vectors(self, layer: int, role: str) -> VectorSet:
        """Return the features of a layer in a role."""
        return self.dictionary.set(layer, role)

    def facts(self, layer: int, role: str) -> SetFacts:
        """Return the facts about the features of a layer in a role."""
        return self.dictionary.facts(layer, role)

    def peers(self, vectors: VectorSet, _unit: Tensor, frame: str) -> Tensor:
        """Return the scaled vectors of the parameters that read or write at the same place as features."""
        key = vectors.layer, vectors.role, frame
        if key not in self._peers:
            others = vector_set(self.model, vectors.layer, vectors.role)
            space, folded = self.space(others, frame), self.folded(others, frame)
            self._peers = {key: standardised(folded, space.moments.of_scores(folded)[1])}
        return self._peers[key]
