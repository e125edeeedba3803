"""The chat template of every fine-tuned model: Tülu's, with the spans marked that a model learns to write.

The text is Tülu's to the byte (open-instruct, `dataset_transformation.py`, CHAT_TEMPLATES["tulu"]). The `generation`
blocks add
nothing to it: they tell which part is an assistant's, content and end of sequence, so that labels can be cut out of the
text. Markers are plain text, no token stands before the first one, and the newline between two turns is in no label.
"""

from __future__ import annotations

import hashlib

TULU = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    "{% endfor %}"
)
TEMPLATES = {"tulu": TULU}
FILE = "chat_template.jinja"
NONE = "none"
"""Value of the facet `chat_template_digest` for a model without a template: a base model."""


def digest(template: str) -> str:
    """SHA-256 of a template's text: what the facet `chat_template_digest` carries."""
    return hashlib.sha256(template.encode()).hexdigest()
