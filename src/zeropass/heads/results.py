"""The catalogue of heads as plain data, without torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from zeropass._io.short_repr import ShortRepr
from zeropass.errors import BadOption
from zeropass.records.panels import AsFigures, HeatMap
from zeropass.records.tabular import POLES, AsTable, Row, Several, plain_fields
from zeropass.relations.results import Relations

__all__ = ["RARE", "TRAITS", "Head", "HeadCatalogue", "Trait", "check_trait"]

SCHEMA_VERSION = 1

RELATIONS = 3
"""The relations of a head that are said of it in words."""

RARE = 0.001
"""A trait stands out if at most this share of random heads has as much of it."""


@dataclass(frozen=True, repr=False)
class Trait(ShortRepr):
    """A measure of a head beside that of random heads.

    Attributes:
        value: The measure.
        chance: The share of random heads with a value as high, the head itself counted among them.
    """

    value: float
    chance: float

    @property
    def stands_out(self) -> bool:
        """True if so few random heads have as much that it is the head's own."""
        return self.chance <= RARE


TRAITS = {
    "copying": "copies",
    "suppression": "suppresses",
    "names": "copies names",
    "closing": "closes brackets",
    "previous": "previous token",
    "offset": "",
    "itself": "itself",
    "same": "same token",
    "first": "first token",
}
"""The traits of a head, and what is said of one that has it; of ``offset`` the offset is said."""


def check_trait(name: str | None) -> None:
    """Raise BadOption for a trait that does not exist."""
    if name is not None and name not in TRAITS:
        raise BadOption(f"There is no trait {name!r} of heads; traits are {', '.join(TRAITS)}.")


@dataclass(frozen=True, repr=False)
class Head(ShortRepr):
    """The traits of a head. A trait is None where the model has nothing that it could be about.

    Attributes:
        address: The address.
        layer: The layer.
        head: The number of the head in its layer.
        copying: By how many deviations of its row in ``vo`` a token promotes itself when it is attended to, the median
            over tokens.
        suppression: The same for demoting itself: minus that.
        rank: The mean share of the row that the token itself exceeds in ``vo``: 1 is the top, 0 the bottom.
        names: The copying of capitalised words.
        closing: By how many deviations an opening bracket or quote promotes the closing one of its kind.
        previous: The share of the attention that is expected for the token before.
        offset: The share expected at the best distance to another token.
        distance: That distance: positions from the key to the query.
        itself: The share expected for the token itself.
        same: The share expected for an earlier token that is the same as the query.
        first: The share expected for the first token of a text, or for a sink that was learned.
        vo_own: The share of the squared norm of ``vo`` that copying accounts for; less than zero for suppression.
        vo_alike: The share of ``vo`` that is written whatever token is attended to.
        qk_own: The share of ``qk`` that attention to the same token and to tokens like it accounts for; less than zero
            for attention to anything else.
        qk_alike: The share of ``qk`` that prefers some keys whatever the query.
        relations: Sets of `zeropass relation` whose right words it writes, the largest gain first (`with_relations`).
    """

    address: str
    layer: int
    head: int
    copying: Trait
    suppression: Trait
    rank: float
    names: Trait | None
    closing: Trait | None
    previous: Trait
    offset: Trait
    distance: int
    itself: Trait
    same: Trait
    first: Trait | None
    vo_own: float
    vo_alike: float
    qk_own: float
    qk_alike: float
    relations: tuple[str, ...] = ()

    def trait(self, name: str) -> Trait | None:
        """Return a trait by its name (`TRAITS`)."""
        trait: Trait | None = getattr(self, name)
        return trait

    @property
    def does(self) -> tuple[str, ...]:
        """The traits that stand out, in words: of those that say the same, one."""
        named = {name: words for name, words in TRAITS.items() if (trait := self.trait(name)) and trait.stands_out}
        if "copying" in named:
            named.pop("names", None)
        if "offset" in named:
            del named["offset"]
            if self.distance != 1:
                named["offset"] = f"offset {self.distance}"
        return (*named.values(), *self.relations[:RELATIONS])

    def plain(self) -> Row:
        """Return it as a row of numbers and texts: each trait, then its chance."""
        row: Row = {"address": self.address, "layer": self.layer, "head": self.head, "does": ", ".join(self.does)}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in TRAITS:
                row[field.name] = None if value is None else value.value
                row[f"{field.name}_chance"] = None if value is None else value.chance
        return row | plain_fields(self)


@dataclass(frozen=True, repr=False)
class HeadCatalogue(ShortRepr, AsTable, AsFigures, Several[Head]):
    """The attention heads of a model with what each does: a sequence of `Head`, by layer.

    Attributes:
        model: The name and the fingerprint of the model.
        frame: The frame of what heads read.
        lens: The lens that they were read through, in words; empty for the weights alone.
        tokens: The number of tokens that maps are measured on.
        random_heads: The number of random heads that each trait is compared with.
        brackets: The kinds of brackets and quotes that the vocabulary has.
        heads: The heads.
        seed: The seed of tokens and random heads.

    Example:
        >>> import zeropass as zp
        >>> catalogue = zp.catalogue_heads("models/first", layers=(1, 2), lens=None)
        >>> catalogue[3].address, catalogue[3].distance
        ('L1.attn.3', 1)
    """

    model: dict[str, Any]
    frame: str
    lens: str
    tokens: int
    random_heads: int
    brackets: tuple[str, ...]
    heads: tuple[Head, ...]
    seed: int = 0

    _ITEMS = "heads"

    @property
    def traits(self) -> tuple[str, ...]:
        """The names of the traits that heads can have here."""
        return tuple(name for name in TRAITS if any(head.trait(name) for head in self.heads))

    def sorted_by(self, name: str) -> "HeadCatalogue":
        """Return the heads with the most of a trait first; those without it last.

        Raises:
            BadOption: There is no such trait.
        """
        check_trait(name)
        traits = {head.address: head.trait(name) for head in self.heads}

        def order(head: Head) -> float:
            trait = traits[head.address]
            return float("inf") if trait is None else -trait.value

        return replace(self, heads=tuple(sorted(self.heads, key=order)))

    def having(self, name: str) -> tuple[Head, ...]:
        """Return the heads in which a trait stands out, those with the most of it first."""
        return tuple(h for h in self.sorted_by(name).heads if (trait := h.trait(name)) and trait.stands_out)

    def counts(self) -> dict[str, int]:
        """Return in how many heads each trait stands out."""
        return {name: len(self.having(name)) for name in TRAITS}

    def with_relations(self, relations: Relations) -> "HeadCatalogue":
        """Return the catalogue with the sets of word pairs of which each head writes the right words.

        Sets are left out of which it writes no more than a head would that only copies: that it copies is said already.

        Args:
            relations: The scores of the same model (`zeropass.relation`).

        Raises:
            BadOption: They are of another model.
        """
        if relations.model != self.model["name"]:
            raise BadOption(f"These are relations of {relations.model}, and the heads are of {self.model['name']}.")
        copied = {relation.name: relation.by_copying for relation in relations}

        def held(address: str) -> tuple[str, ...]:
            scores = relations.of_head(address)
            return tuple(name for name, score in scores if score.pole == POLES[0] and score.share > copied[name])

        return replace(self, heads=tuple(replace(head, relations=held(head.address)) for head in self.heads))

    def table_rows(self) -> Iterator[Row]:
        """Yield a row for each head."""
        yield from (head.plain() for head in self.heads)

    def panels(self) -> Iterator[HeatMap]:
        """Yield a map of layers by heads for each trait."""
        layers = sorted({head.layer for head in self.heads})
        columns = range(1 + max((head.head for head in self.heads), default=0))
        for name in self.traits:
            values = {(h.layer, h.head): trait.value for h in self.heads if (trait := h.trait(name))}
            yield HeatMap(
                title=name,
                x="head",
                y="layer",
                rows=[str(layer) for layer in layers],
                columns=[str(head) for head in columns],
                values=[[values.get((layer, head), float("nan")) for head in columns] for layer in layers],
                scale="deviations" if name in ("copying", "suppression", "names", "closing") else "share",
            )

    def _repr_words(self) -> str:
        named = sum(bool(head.does) for head in self.heads)
        return f"{len(self.heads)} heads of {self.model.get('name', '')}, {named} with a trait that stands out"

    def to_json(self) -> dict[str, Any]:
        """Return a dict that json.dumps takes."""
        heads = [asdict(head) | {"does": head.does} for head in self.heads]
        return {"schema": SCHEMA_VERSION, **asdict(replace(self, heads=())), "heads": heads}
