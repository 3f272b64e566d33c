"""Record the splits of the sentencepiece library (not a dependency: ``pip install sentencepiece==0.2.3``).

``python tests/tokens/record_sentencepiece.py`` splits the texts of ``sentencepiece.json`` by its models, which were
trained once: ``t5`` and ``fairseq`` are Unigram models with rules of their own for characters, ``bpe`` is a BPE model,
``users`` a Unigram model with the controls and languages of Speech2Text, and ``bytes`` one with byte fallback.
"""

import base64
import json
from pathlib import Path

from sentencepiece import SentencePieceProcessor

FILE = Path(__file__).parent / "sentencepiece.json"

if __name__ == "__main__":
    recorded = json.loads(FILE.read_text())
    recorded["splits"] = {
        name: SentencePieceProcessor(model_proto=base64.b64decode(data)).encode(recorded["texts"], out_type=str)
        for name, data in recorded["models"].items()
    }
    FILE.write_text(json.dumps(recorded, ensure_ascii=False) + "\n")
