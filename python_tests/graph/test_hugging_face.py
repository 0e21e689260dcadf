"""Transformers of Hugging Face, random weights: the hidden layers of their blocks grow by default."""

import pytest
import torch

import plantops

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def vit() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=8, num_labels=3)
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


def bert() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    config = transformers.BertConfig(**SMALL, vocab_size=30, max_position_embeddings=12, num_labels=3)
    ids = torch.arange(10).reshape(2, 5)
    return transformers.BertForSequenceClassification(config), {"input_ids": ids, "attention_mask": ids.ge(0).long()}


@pytest.mark.parametrize("make", [vit, bert])
def test_every_block_has_a_site(make) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    plan = plantops.trace(model, inputs)
    hidden = [name for name in plan if "intermediate" in name or "fc1" in name]
    assert len(hidden) == SMALL["num_hidden_layers"], str(plan)
    assert all(plan[name].width == SMALL["intermediate_size"] for name in hidden)
    assert all(len(plan[name].consumers) == 1 for name in hidden)
    assert not any(name in plantops.trace(model, inputs, grow_linear=False) for name in hidden)
    planted = plantops.plant(model, plan[hidden[0]], 8)
    torch.testing.assert_close(planted(**inputs).logits, model(**inputs).logits)
