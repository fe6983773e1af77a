"""The menu of lessons: one line a way to learn. Specs only; importing them loads no torch."""

from tasks.lessons.dpo import DPO as DPO
from tasks.lessons.imitation import Imitation as Imitation
from tasks.lessons.kto import KTO as KTO
from tasks.lessons.logits import Logits as Logits
from tasks.lessons.on_policy import OnPolicy as OnPolicy

Learn = Imitation | Logits | OnPolicy
Prefer = DPO | KTO
