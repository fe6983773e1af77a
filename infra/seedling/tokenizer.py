"""The seedlings' tokenizer: byte-level BPE whose merges never cross a space, a digit or a punctuation mark.

Copying an argument out of a message is easy for a tiny model only if the span has the same tokens in both places.
GPT-2's merges glue the leading space to a word (`` Boston`` in the message, ``Boston`` after a JSON quote: two
tokens that share nothing), and glue digits into chunks that depend on where a number starts. So the merges are
learned on text split into letters, single digits, punctuation and single spaces. At run time the stock GPT-2
pre-tokenizer applies: it splits more coarsely, but no merge exists that could use the difference. That keeps the
tokenizer loadable by llama.cpp (``pre = gpt-2``) with identical ids.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<tool_call>", "</tool_call>")
VOCABULARY = 4096
CONTEXT = 2048

CHAT_TEMPLATE = (
    "{%- if tools %}{{ '<|system|>' }}"
    "{%- if messages and messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{%- endif %}"
    "{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{%- endfor %}{{ '<|end|>' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (tools and loop.first and message.role == 'system') %}"
    "{{ '<|' + message.role + '|>' }}"
    "{%- if message.content %}{{ message.content }}{%- endif %}"
    "{%- if message.tool_calls %}{%- for call in message.tool_calls %}"
    '{{ \'<tool_call>{"name":"\' + call.function.name + \'","arguments":\' }}'
    "{{ call.function.arguments | tojson(separators=(',', ':')) }}{{ '}</tool_call>' }}"
    "{%- endfor %}{%- endif %}{{ '<|end|>' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"
)


def train(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn the merges from `texts`; the same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    strict = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|\s|[^\s\p{L}\p{N}]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [strict, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=list(SPECIAL[2:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
