"""A labelling program that understands nothing: it copies words, and counts the beginnings that they share.

zeropass label demo/smollm2-135m L29.ff.864 --with 'python reproduce/copying_labeller.py'

Its sentence is the first words of each pole. Asked which list a sentence describes, it answers the one with the most
words whose first four letters it has copied. What a language model scores is to be compared with this
(docs/labels.md).
"""

import re
import sys

FEW = 4
"""The number of words that are copied from a line, and of letters that count as a beginning."""


def main() -> None:
    """Answer the prompt on stdin."""
    prompt = sys.stdin.read()
    lists, _, question = prompt.partition("Which list does this sentence describe?")
    if not question:
        copied = [word for line in prompt.split("\n\n")[1].splitlines() for word in words(line)[:FEW]]
        print("Words such as", ", ".join(copied) or "none")
        return
    known = beginnings(question)
    shared = [len(known & beginnings(text)) for text in re.split(r"List \d+\n", lists)[1:]]
    print(shared.index(max(shared)) + 1)


def words(text: str) -> list[str]:
    """Return the words of a text that are longer than two letters."""
    return re.findall(r"[^\W\d_]{3,}", text)


def beginnings(text: str) -> set[str]:
    """Return the first letters of the words of a text."""
    return {word.casefold()[:FEW] for word in words(text)}


if __name__ == "__main__":
    main()
