"""Attention: Keras models written by hand against transformers, torchvision and timm; fused projections; what the graph can see of heads and roles."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from torch import nn

import torchvision_cpu  # noqa: F401
import twins
from unifreeze import correspond, errors, port

sys.path.insert(0, str(Path(__file__).parent))
from transformers_in_keras import L, bert, gpt, ops, randomised, vit

IDS = np.random.default_rng(0).integers(0, 50, (2, 16))
SEGMENTS = np.random.default_rng(1).integers(0, 2, (2, 16))
IMAGES = np.random.default_rng(2).normal(size=(2, 32, 32, 3)).astype("float32")
WORDS = np.random.default_rng(3).normal(size=(2, 6, 24)).astype("float32")
TOKENS = {"input_ids": (1, 16), "token_type_ids": (1, 16)}


def their_bert(**more):
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 16}
    return BertModel(BertConfig(**sizes | more)).eval()


def their_gpt(**more):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes | more)).eval()


def their_vit():
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 4, 24, 96, num_classes=5).eval()


def timms_vit():
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(32, 8, embed_dim=24, depth=2, num_heads=4, num_classes=5).eval()


def swins():
    """Swin as torchvision, timm and transformers write it: patches are merged by slices, by a reshape, and by slices of a flat row of positions."""
    from timm.models.swin_transformer import SwinTransformer as Timm
    from torchvision.models import SwinTransformer
    from transformers import SwinConfig, SwinForImageClassification

    sizes = {"image_size": 112, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 7, "num_labels": 5}
    return {
        "torchvision": SwinTransformer([4, 4], 24, [2, 2], [2, 4], [7, 7], num_classes=5).eval(),
        "timm": Timm(img_size=112, patch_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=7, num_classes=5).eval(),
        "transformers": SwinForImageClassification(SwinConfig(**sizes)).eval(),
    }


def near(ours, theirs):
    return twins.apart(keras.ops.convert_to_numpy(ours), theirs.detach().numpy()) < 1e-5


def proved(found, inputs):
    """Exact, and the weights carried over make what they did not make before."""
    assert (found.certificate, found.interchangeable, found.unmatched[0]) == ("exact", (), ())
    before = found.verify(inputs)
    found.transfer()
    assert before > 0.1
    assert found.verify(inputs) < 1e-5


def test_bert():
    ours, theirs = bert(), their_bert()
    proved(correspond(ours, theirs, shape=TOKENS), [IDS, SEGMENTS])
    out = theirs(input_ids=torch.from_numpy(IDS), token_type_ids=torch.from_numpy(SEGMENTS))
    sequence, pooled = ours([IDS, SEGMENTS])
    assert near(sequence, out.last_hidden_state)
    assert near(pooled, out.pooler_output)


def test_gpt2_and_its_fused_tied_weights():
    ours, theirs = gpt(), their_gpt()
    proved(correspond(ours, theirs, shape={"input_ids": (1, 16)}), IDS)
    assert near(ours(IDS), theirs(torch.from_numpy(IDS)).logits)


@pytest.mark.parametrize(("mha", "theirs"), [(True, their_vit), (False, timms_vit)], ids=["in_proj", "qkv"])
def test_a_vision_transformer(mha, theirs):
    ours, theirs = vit(mha=mha), theirs()
    proved(correspond(ours, theirs), IMAGES)
    assert near(ours(IMAGES), theirs(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)))


PAIRS = [("torchvision", "timm"), ("timm", "transformers"), ("transformers", "torchvision")]


@pytest.mark.parametrize(("source", "target"), [PAIRS[0], *(pytest.param(*pair, marks=pytest.mark.deep) for pair in PAIRS[1:])])
def test_swin_however_patches_are_merged(source, target):
    images, models = torch.randn(2, 3, 112, 112), swins()
    found = correspond(models[source], models[target], shape=(1, 112, 112, 3))
    assert (found.certificate, found.interchangeable, found.unmatched[0]) == ("exact", (), ())
    ours, theirs = (getattr(out, "logits", out).detach().numpy() for out in (models[source](images), models[target](images)))
    assert twins.apart(ours, theirs) > 0.1
    found.transfer()
    theirs = models[target](images)
    assert twins.apart(ours, getattr(theirs, "logits", theirs).detach().numpy()) < 1e-5


def test_weights_back_from_fused_to_apart():
    theirs, ours = timms_vit(), vit(mha=False)
    correspond(theirs, ours).transfer()
    assert near(ours(IMAGES), theirs(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)))


def test_tracing_allocates_nothing_and_leaves_no_trace():
    ours = gpt()
    layers = ours._flatten_layers()
    before = [(len(layer._inbound_nodes), len(layer._outbound_nodes), sorted(vars(layer))) for layer in layers]
    values = [keras.ops.convert_to_numpy(v) for v in ours.variables]
    name = keras.backend.get_uid("probe")
    with torch.device("meta"):
        theirs = their_gpt()
    state = torch.random.get_rng_state()
    found = correspond(ours, theirs, shape={"input_ids": (1, 16)})
    assert found.certificate == "exact"
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.is_meta for p in theirs.parameters())
    assert [(len(layer._inbound_nodes), len(layer._outbound_nodes), sorted(vars(layer))) for layer in ours._flatten_layers()] == before
    assert all(np.array_equal(a, keras.ops.convert_to_numpy(v)) for a, v in zip(values, ours.variables, strict=True))
    assert keras.backend.get_uid("probe") == name + 1


def test_a_freeze_of_one_projection_cannot_be_carried_into_a_fused_one():
    ours, theirs = vit(mha=False), timms_vit()
    with pytest.raises(errors.CorrespondenceError, match="one parameter of the target and several of the source"):
        port({"steps": [{"freeze": "**.query"}]}, ours, theirs)
    assert all(p.requires_grad for p in theirs.parameters())
    port({"steps": [{"freeze": f"**.{role}"} for role in ("query", "key", "value")]}, ours, theirs)
    assert {name for name, p in theirs.named_parameters() if not p.requires_grad} == {
        f"blocks.{block}.attn.qkv.{what}" for block in (0, 1) for what in ("weight", "bias")
    }


# One attention on its own, its twin, and twins that are wrong in one thing.


def attention(heads=4):
    words = keras.Input((6, 24))
    query, key, value = (L.Reshape((6, heads, 24 // heads))(L.Dense(24, name=name)(words)) for name in ("query", "key", "value"))
    scores = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", query, key) / (24 / heads) ** 0.5)
    mixed = L.Reshape((6, 24))(ops.einsum("bhqk,bkhd->bqhd", scores, value))
    return randomised(keras.Model(words, L.Dense(24)(mixed)))


class Attention(nn.Module):
    """The twin, with its projections in one matrix: as thirds, or with those of each head together."""

    def __init__(self, heads=4, order="qkv", how="thirds", inner=False):
        super().__init__()
        self.out, self.all = nn.Linear(24, 24), nn.Linear(24, 72)
        self.heads, self.order, self.how, self.inner = heads, order, how, inner

    def forward(self, x):
        size = 24 // self.heads
        if self.how == "thirds":
            apart = [one.unflatten(-1, (self.heads, size)) for one in self.all(x).chunk(3, -1)]
        elif self.how == "interleaved":
            apart = self.all(x).unflatten(-1, (self.heads, 3, size)).unbind(-2)
        else:
            apart = [one.unflatten(-1, (size, self.heads)).transpose(-1, -2) for one in self.all(x).chunk(3, -1)]
        q, k, v = (apart["qkv".index(role)].transpose(1, 2) for role in self.order)
        mixed = (q @ k.transpose(-1, -2) / size**0.5).softmax(-2 if self.inner else -1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("order", ["qkv", "vqk", "kvq"])
@pytest.mark.parametrize("how", ["thirds", "interleaved"])
def test_fused_projections_are_told_apart_by_what_becomes_of_them(how, order):
    proved(correspond(attention(), Attention(order=order, how=how)), WORDS)


class Biased(nn.Module):
    """An attention with a table of biases for each head, as windowed transformers have it, which is looked up before the projections are made or after."""

    def __init__(self, *, early, fused):
        super().__init__()
        self.all, self.out, self.table = nn.Linear(24, 72), nn.Linear(24, 24), nn.Parameter(torch.randn(11, 4))
        self.early, self.fused = early, fused

    def biases(self):
        return self.table[(torch.arange(6)[:, None] - torch.arange(6) + 5).flatten()].view(6, 6, 4).permute(2, 0, 1).unsqueeze(0)

    def forward(self, x):
        found = self.biases() if self.early else None
        q, k, v = self.all(x).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 1, 4)
        bias = self.biases() if found is None else found
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias) if self.fused else (q @ k.mT / 6**0.5 + bias).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_a_table_of_biases_may_be_looked_up_at_any_time(early, fused):
    proved(correspond(Biased(early=True, fused=False), Biased(early=early, fused=fused), shape=(1, 6, 24)), WORDS)


def test_models_that_differ_only_in_what_they_return_say_so():
    class Normed(Biased):
        def __init__(self, returned):
            super().__init__(early=True, fused=True)
            self.norm, self.returned = nn.LayerNorm(24), returned

        def forward(self, x):
            return self.norm(super().forward(x))[:, self.returned]

    found = correspond(Normed(slice(None)), Normed(0), shape=(1, 6, 24))
    assert (found.certificate, found.unmatched) == ("prefix", ((), ()))
    assert "every layer has a partner; what the models return" in found.divergence


def test_another_number_of_heads_is_not_exact():
    assert correspond(attention(heads=4), Attention(heads=3)).certificate == "prefix"


def test_heads_that_lie_the_other_way_round_are_not_exact():
    assert correspond(attention(), Attention(how="turned")).certificate == "prefix"


def test_what_no_weight_decides_is_told_by_verify():
    found = correspond(attention(), Attention(inner=True))
    found.transfer()
    assert found.verify(WORDS) > 1e-3


class Apart(nn.Module):
    def __init__(self, swapped=False):
        super().__init__()
        self.v_proj, self.k_proj, self.q_proj, self.out = (nn.Linear(24, 24) for _ in range(4))
        self.swapped = swapped

    def forward(self, x):
        q, k, v = (proj(x).unflatten(-1, (4, 6)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, v = (v, q) if self.swapped else (q, v)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("swapped", [False, True])
def test_roles_come_from_the_graph_and_not_from_names(swapped):
    found = correspond(attention(), Apart(swapped))
    proved(found, WORDS)
    assert dict(found.pairs)["query"] == ("v_proj" if swapped else "q_proj")


def test_a_weight_that_symbols_do_not_reach_is_refused():
    class Hidden(L.Layer):
        def build(self, shape):
            self.kernel = {"it": [self.add_weight(name="kernel", shape=(24, 24))]}

        def call(self, x):
            return ops.matmul(x, self.kernel["it"][0] * 2)

    words = keras.Input((6, 24))
    with pytest.raises(errors.BackendError, match="constant matrix|way that unifreeze can't trace"):
        correspond(keras.Model(words, Hidden()(words)), nn.Linear(24, 24))
