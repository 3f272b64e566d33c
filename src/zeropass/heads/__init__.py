"""A catalogue of heads: what each attention head does, judged against random heads (docs/heads.md)."""
