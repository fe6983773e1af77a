"""A workload's cases, and what was said of each, as curation meets them."""

from tasks.dataset.cases import Case, Window


def cases_of(workload: str) -> list[Case]:
    cases = [case for page in Window.latest(workload, 1000).pages() for case in page]
    conversations = [case.conversation for case in cases]
    for case in cases:
        if conversations.count(case.conversation) == 1:
            case.opinions += case.of_conversation
    return cases
