"""Made-up translations, close to their references."""

import random


def corpus(size: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """References of random words, and hypotheses that change a third of them and lose some."""
    rng = random.Random(seed)
    words = [
        "the",
        "cat",
        "Cat",
        "sat",
        "on",
        "a",
        "mat,",
        "don't",
        "고양이를",
        "좋아해",
        "Männer",
        "3.14",
        "(so)",
        ".",
    ]
    references = [" ".join(rng.choices(words, k=rng.randint(1, 14))) for _ in range(size)]
    hypotheses = [
        " ".join(rng.choice(words) if rng.random() < 0.3 else w for w in r.split() if rng.random() > 0.05)
        for r in references
    ]
    return hypotheses, references
