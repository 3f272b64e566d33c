"""Label lists of tokens with the sentences of another program, and score each sentence against wrong lists."""
