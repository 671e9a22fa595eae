"""Numbers with their nouns, as sentences have them."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 shard`, `2,000 shards`. plural: that of the noun, where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
