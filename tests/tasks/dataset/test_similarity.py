"""What is a near duplicate, and what only looks like one."""

import random

import pytest

from infra.seedling import shop
from tasks.dataset.similarity import clusters, numbers, words

OTHERS = ["how do I close my account", "the app crashes when I open it", "what is your exchange rate for yen"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Can I get another card?", "How can I get another card?"),
        ("Play some dance music", "play some DANCE music."),
        ("why was my card payment refused yesterday", "why was my card paymnt refused yesterday?"),
        ("--", "--"),
    ],
)
def test_the_same_question_in_other_dress_is_one_cluster(one: str, other: str) -> None:
    found = clusters([one, *OTHERS, other], 0.7)
    assert found[0] == found[-1] and len(set(found)) == 1 + len(OTHERS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("where is order 48213", "where is order 91372"),
        ("please cancel my order 48213 and refund what I paid", "please cancel my order 48214 and refund what I paid"),
        ("What's the weather forecast for Connecticut", "What's the weather forecast for Spain"),
        ("I lost my card", "I lost my phone"),
        ("", "?"),
    ],
)  # fmt: skip
def test_another_value_is_another_task(one: str, other: str) -> None:
    found = clusters([one, *OTHERS, other], 0.7)
    assert len(set(found)) == 2 + len(OTHERS)


def test_a_long_template_does_not_make_all_requests_alike() -> None:
    template = " ".join(f"{random.Random(n).getrandbits(40):x}".strip("0123456789") for n in range(300)) + ": "
    headlines = [
        "Acme beats estimates",
        "Bolt cuts its payout",
        "Crane buys Drill",
        "Ember fined by the EU",
        "Fern hires a chief",
    ]
    assert len(set(clusters([template + headline for headline in headlines], 0.7))) == len(headlines)


def test_the_shops_customers_do_not_collapse_into_a_few_clusters() -> None:
    said = [exchange.turns[0][0] for exchange in shop.exchanges(7, 600, "train")]
    found = clusters(said, 0.7)
    assert len(set(found)) > 0.75 * len(set(said))
    assert max(found.count(cluster) for cluster in set(found)) < 0.05 * len(said)


def test_the_order_of_texts_does_not_change_who_is_together() -> None:
    said = [exchange.turns[0][0] for exchange in shop.exchanges(3, 300, "train")]
    shuffled = random.Random(0).sample(range(len(said)), len(said))
    one, other = clusters(said, 0.7), clusters([said[i] for i in shuffled], 0.7)

    def groups(found: list[int], order: list[int]) -> set[frozenset[int]]:
        return {frozenset(order[i] for i, c in enumerate(found) if c == cluster) for cluster in set(found)}

    assert groups(one, list(range(len(said)))) == groups(other, shuffled)


def test_clusters_are_those_of_comparing_every_pair() -> None:
    """Against brute force on sets of characters; edits of one text overlap by anything from nothing to all."""
    chance = random.Random(5)
    lexicon = [f"{chance.getrandbits(20):x}".translate(str.maketrans("0123456789", "ghijklmnop")) for _ in range(200)]
    texts = []
    for _ in range(60):
        said = chance.choices(lexicon, k=12)
        for _ in range(5):
            edited = [word if chance.random() > 0.08 else chance.choice(lexicon) for word in said]
            texts.append(" ".join([*edited, str(chance.randint(1, 2))]))
    plain = [f" {' '.join(words(text))} " for text in texts]
    sets = [{text[i : i + 5] for i in range(len(text) - 4)} for text in plain]
    parent = list(range(len(texts)))
    pairs = 0
    for i in range(len(texts)):
        for j in range(i):
            near = len(sets[i] & sets[j]) >= 0.7 * len(sets[i] | sets[j])
            if near and numbers(texts[i]) == numbers(texts[j]):
                parent = [parent[j] if number == parent[i] else number for number in parent]
                pairs += 1
    found = clusters(texts, 0.7)
    together = [(i, j) for i in range(len(texts)) for j in range(i) if parent[i] == parent[j]]
    kept = sum(found[i] == found[j] for i, j in together)
    assert pairs > 100 and kept >= 0.99 * len(together)
    apart = [(i, j) for i in range(len(texts)) for j in range(i) if parent[i] != parent[j]]
    assert not any(found[i] == found[j] for i, j in apart)
