"""The table of families; adding one touches a file of this folder and `tests/zoo.py`, nothing else."""

from zeropass.arch.families.bert import FAMILIES as ENCODERS
from zeropass.arch.families.decoders import FAMILIES as DECODERS
from zeropass.arch.families.dense import FAMILIES as DENSE
from zeropass.arch.families.encoders import FAMILIES as OTHER_ENCODERS
from zeropass.arch.families.experts import FAMILIES as EXPERTS
from zeropass.arch.families.gemma import FAMILIES as GEMMAS
from zeropass.arch.families.gguf_experts import FAMILIES as GGUF_EXPERTS
from zeropass.arch.families.gguf_hybrids import FAMILIES as GGUF_HYBRIDS
from zeropass.arch.families.gguf_seq2seq import FAMILIES as GGUF_ENCODERS
from zeropass.arch.families.gpt import FAMILIES as GPTS
from zeropass.arch.families.hybrids import FAMILIES as HYBRIDS
from zeropass.arch.families.latent import FAMILIES as LATENT
from zeropass.arch.families.llama import FAMILIES as LLAMAS
from zeropass.arch.families.seq2seq import FAMILIES as ENCODER_DECODERS
from zeropass.arch.families.sigmoid_experts import FAMILIES as SIGMOID_EXPERTS
from zeropass.arch.families.t5gemma import FAMILIES as GEMMA_ENCODER_DECODERS
from zeropass.arch.families.uneven import FAMILIES as UNEVEN
from zeropass.arch.spec import Family

__all__ = ["FAMILIES"]

FAMILIES: tuple[Family, ...] = (
    *LLAMAS,
    *GEMMAS,
    *DENSE,
    *DECODERS,
    *EXPERTS,
    *SIGMOID_EXPERTS,
    *UNEVEN,
    *LATENT,
    *HYBRIDS,
    *GGUF_EXPERTS,
    *GGUF_HYBRIDS,
    *GPTS,
    *ENCODERS,
    *OTHER_ENCODERS,
    *ENCODER_DECODERS,
    *GEMMA_ENCODER_DECODERS,
    *GGUF_ENCODERS,
)
