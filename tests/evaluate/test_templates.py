"""Chat templates of strangers, as `plait eval --chat` renders them: in Jinja's sandbox, and not for ever."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from plait.errors import ModelError
from plait.evaluate import network

HOSTILE = {
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a huge range": "{% for a in range(999999999) %}x{% endfor %}",
    "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "refuses": "{{ raise_exception('no') }}",
    "no name": "{{ messages[7].content.x }}",
    "zero": "{{ 1 // 0 }}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that loops, reaches for Python, or fails is refused in one message; a good one gives tokens."""
    monkeypatch.setattr(network, "TEMPLATE_SECONDS", 0.3)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"hi": 0, "?": 1}, unk_token="?")), unk_token="?"
    )
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert network.prompt_ids(tokenizer, "hi", chat=True) == [0]
    tokenizer.chat_template = HOSTILE[case]
    with pytest.raises(ModelError, match="cannot be rendered") as caught:
        network.prompt_ids(tokenizer, "hi", chat=True)
    assert caught.value.found
    assert caught.value.do
