"""The table of families. Adding one touches a file of this folder and the list in its test, nothing else."""

from zeropass.arch.families.bert import FAMILIES as ENCODERS
from zeropass.arch.families.gpt import FAMILIES as GPTS
from zeropass.arch.families.llama import FAMILIES as LLAMAS
from zeropass.arch.families.seq2seq import FAMILIES as PAIRS
from zeropass.arch.spec import Family

__all__ = ["FAMILIES"]

FAMILIES: tuple[Family, ...] = (*LLAMAS, *GPTS, *ENCODERS, *PAIRS)
