"""A vision-language model of a few thousand weights, random and from configuration: Llava on CLIP and Llama.

Its reply always begins with a digit of 1 to 5, whose weights are the largest; what it thinks of Yes and No is its own.
"""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = """<unk> <s> </s> <pad> <image> Yes No A B C D E user assistant : ? . , ( ) Does this picture show a red sign
    blue Is there one Answer or only number with from to worst best 1 2 3 4 5 KITE UP"""
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% endif %} {% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


def write_vlm(folder: Path) -> None:
    """As `transformers serve` opens it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = {word: i for i, word in enumerate(WORDS.split())}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, additional_special_tokens=["<image>"], **names)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=16, projection_dim=32),
            text_config=LlamaConfig(
                **small,
                vocab_size=len(words),
                num_key_value_heads=2,
                bos_token_id=words["<s>"],
                eos_token_id=words["</s>"],
                pad_token_id=words["<pad>"],
            ),
            image_token_index=words["<image>"],
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
        )
    )
    with torch.no_grad():
        model.lm_head.weight[[words[digit] for digit in "12345"]] *= 50
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
