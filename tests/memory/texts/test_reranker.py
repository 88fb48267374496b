"""The numpy cross-encoder against transformers on the same weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memserve.errors import StartupError
from memserve.memory.texts.encoders.cross_encoder import CrossEncoder

WORDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, **{f"w{number}": 4 + number for number in range(56)}}
QUERY = "w1 w2 w3"
PASSAGES = [
    "w4",
    "w5 w6 nobody w7 w8 w9",
    " ".join(f"w{number % 50}" for number in range(70)),
    "w1 w2 w3",
    "",
]
IDENTITY = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}


def tiny_cross_encoder(folder: Path, kind: str = "Bert", types: int = 1, **changes: Any) -> Path:
    """With random weights and its own words, as sentence-transformers' CrossEncoder saves it."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=60,
        type_vocab_size=types,
        pad_token_id=1,
        layer_norm_eps=1e-5,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=40,
        num_labels=changes.pop("labels", 1),
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    second = min(types - 1, 1)
    between = "</s>" if kind == "Bert" else "</s> </s>"
    pair = f"<s> $A {between} $B:{second} </s>:{second}"
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if types > 1 else [])]
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_input_names": inputs, "model_max_length": 512}), encoding="utf-8"
    )
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    return folder


def by_transformers(folder: Path, query: str, passages: list[str], *, types: bool) -> list[float]:
    import torch
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>"
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    limit = 40 if model.config.model_type == "bert" else 38
    found = []
    for passage in passages:
        tokens = tokenizer(
            [query],
            [passage],
            truncation="only_second",
            max_length=limit,
            return_tensors="pt",
            return_token_type_ids=True,
        )
        with torch.no_grad():
            logits = model(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                token_type_ids=tokens["token_type_ids"] if types else None,
            ).logits
        found.append(float(logits[0, 0]))
    return found


@pytest.mark.parametrize(
    ("kind", "types"), [(kind, types) for kind in ("Bert", "Roberta", "XLMRoberta") for types in (1, 2)]
)
def test_scores_are_those_of_transformers(kind: str, types: int, tmp_path: Path) -> None:
    folder = tiny_cross_encoder(tmp_path / "model", kind, types, **IDENTITY)
    ours = CrossEncoder(folder).score(QUERY, PASSAGES)
    theirs = by_transformers(folder, QUERY, PASSAGES, types=types > 1)
    assert np.ptp(theirs) > 0.05, "the passages have different scores"
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_token_types_make_a_difference(tmp_path: Path) -> None:
    folder = tiny_cross_encoder(tmp_path / "model", "Bert", 2, **IDENTITY)
    without = by_transformers(folder, QUERY, PASSAGES, types=False)
    assert np.abs(np.array(CrossEncoder(folder).score(QUERY, PASSAGES)) - without).max() > 1e-2


@pytest.mark.parametrize(
    "said", [{}, {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}]
)
def test_a_score_is_between_0_and_1_unless_the_model_says_otherwise(
    said: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny_cross_encoder(tmp_path / "model", **said)
    logits = np.array(by_transformers(folder, QUERY, PASSAGES, types=False))
    np.testing.assert_allclose(
        CrossEncoder(folder).score(QUERY, PASSAGES), 1 / (1 + np.exp(-logits)), atol=1e-5
    )


def test_a_long_query_leaves_room_for_the_passage(tmp_path: Path) -> None:
    reranker = CrossEncoder(tiny_cross_encoder(tmp_path / "model", **IDENTITY))
    query = " ".join(f"w{number % 50}" for number in range(200))
    scores = reranker.score(query, ["w1", "w2"])
    assert abs(scores[0] - scores[1]) > 1e-3
    assert reranker.score(query + " w9", ["w1"]) == pytest.approx(scores[:1], abs=1e-5)
    assert max(reranker.tokens(query, PASSAGES)) == 40


def test_a_passage_scores_the_same_alone_and_among_others(tmp_path: Path) -> None:
    reranker = CrossEncoder(tiny_cross_encoder(tmp_path / "model", **IDENTITY))
    passages = [f"w{number % 50} " * (1 + number % 30) for number in range(150)]
    together = reranker.score(QUERY, passages)
    for number in (0, 29, 77, 149):
        assert reranker.score(QUERY, [passages[number]])[0] == pytest.approx(together[number], abs=1e-5)
    assert reranker.score(QUERY, []) == []


def test_another_model_has_another_identity(tmp_path: Path) -> None:
    one = CrossEncoder(tiny_cross_encoder(tmp_path / "one"))
    same = CrossEncoder(tiny_cross_encoder(tmp_path / "same"))
    other = CrossEncoder(tiny_cross_encoder(tmp_path / "other", **IDENTITY))
    assert one.identity == same.identity != other.identity
    assert len(one.identity) == 16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": 3}, "has one label, and this model has 3"),
        ({"model_type": "t5"}, "is of type 't5'; memserve computes bert, roberta, xlm-roberta"),
        ({"sbert_ce_default_activation_function": "torch.nn.Tanh"}, "memserve computes Identity and Sigmoid"),
        ({"num_hidden_layers": 9}, "has no weight"),
        ({"hidden_act": "silu"}, "memserve computes gelu"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = tiny_cross_encoder(tmp_path / "model", **changes)
    with pytest.raises(StartupError) as refused:
        CrossEncoder(folder)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_embedding_model_is_no_reranker(tmp_path: Path) -> None:
    from memserve.memory.texts.embedder_files import bundled_model_dir

    with pytest.raises(StartupError, match="reranker"):
        CrossEncoder(bundled_model_dir())
    with pytest.raises(StartupError, match=r"has no config\.json"):
        CrossEncoder(tmp_path)
