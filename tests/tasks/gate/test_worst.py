from tasks.gate.worst import inside, members, search
from tasks.scoring.scorecards import Item


def items(wrong: set[int]) -> list[Item]:
    """400 items, of which each is in one of two halves and in one of four quarters."""
    return [
        Item(i, f"c{i}", ("calls" if i % 2 else "words", f"request:{i % 4 // 2}", "all"), float(i not in wrong))
        for i in range(400)
    ]


def test_a_loss_that_hides_in_a_pair_of_slices_is_found_and_all_that_was_looked_at_is_counted() -> None:
    hidden = {i for i in range(400) if i % 2 and i % 4 // 2 == 1 and i < 200}
    found = search(items(hidden), items(set()), worst=2, least=100, known=())
    assert found.names[0] == "calls & request:1"
    assert found.looked == 8, "two halves by kind, two by length, four quarters; `all` is the whole"
    assert search(items(hidden), items(set()), 1, 100, known=found.names[:1]).looked == 7
    assert search(items(hidden), items(set()), 9, 101, ()).looked == 4, "the quarters are too small"


def test_the_worst_is_what_stands_out_not_what_is_small() -> None:
    chance = {1, 5, 9}
    real = {i for i in range(0, 400, 8)}
    found = search(items(chance | real), items(set()), 1, 50, ())
    assert all(inside(items(set())[i], found.names[0]) for i in real)


def test_each_set_of_items_is_looked_at_once() -> None:
    assert len(members([item._replace(slices=("a", "b", *item.slices)) for item in items(set())], 100)) == 8
