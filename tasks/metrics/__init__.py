"""The menu of metrics: one line a way to tell how good an answer is. Specs; what they need is loaded when they score.

What an engine takes to give it (latency, throughput, memory, size, energy, cost) lies beside them and has no options.
"""

from typing import Annotated

from pydantic import Field

from tasks.menu import MENU
from tasks.metrics.calibration import Calibration as Calibration
from tasks.metrics.exact_match import ExactMatch as ExactMatch
from tasks.metrics.json_schema import JSONSchema as JSONSchema
from tasks.metrics.judge import Judge as Judge
from tasks.metrics.label_f1 import LabelF1 as LabelF1
from tasks.metrics.metric import Answered as Answered
from tasks.metrics.metric import Metric as Metric
from tasks.metrics.metric import Score as Score
from tasks.metrics.perplexity import Perplexity as Perplexity
from tasks.metrics.quality import Quality as Quality
from tasks.metrics.rouge_l import RougeL as RougeL
from tasks.metrics.token_f1 import TokenF1 as TokenF1
from tasks.metrics.tool_call import ToolCall as ToolCall

MetricSpec = Annotated[
    Quality | ExactMatch | ToolCall | JSONSchema | TokenF1 | RougeL | LabelF1 | Calibration | Perplexity | Judge,
    Field(discriminator="name"),
    MENU,
]

# Told on every scorecard unless asked otherwise: what takes no time, and nobody's money.
BESIDE: tuple[MetricSpec, ...] = (
    ExactMatch(), ToolCall(), TokenF1(), RougeL(), JSONSchema(), LabelF1(), Calibration(),
)  # fmt: skip
