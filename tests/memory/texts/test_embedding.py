"""The numpy embedder against transformers on the same weights."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.memory.texts.embedder_files import (
    MAX_EMBEDDED_TOKENS,
    Prompts,
    bundled_model_dir,
    configured_embedder,
    open_embedder,
)
from memserve.memory.texts.embedding import BertEmbedder, Floats

TEXTS = [
    "Where does the night shift keep the spare key?",
    "a",
    "The code of the north gate is QX-7741-B.",
    "Grüße aus Köln: naïve café 東京 🙂",
    "word " * 1000,
    "The pump in hall 3 must be primed by hand after a power cut. " * 6,
]


def cosine(a: Floats, b: Floats) -> float:
    return float(a @ b)


def test_embeddings_equal_those_of_transformers(embedder: BertEmbedder) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled_model_dir())
    model = transformers.BertModel.from_pretrained(bundled_model_dir(), attn_implementation="eager").eval()
    for text in TEXTS:
        tokens = tokenizer([text], truncation=True, max_length=MAX_EMBEDDED_TOKENS, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state[0]
        expected = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).numpy()
        np.testing.assert_allclose(embedder.embed([text])[0], expected, atol=1e-4)


def test_a_batch_gives_each_text_what_it_gets_alone(embedder: BertEmbedder) -> None:
    together = embedder.embed(TEXTS)
    assert together.shape == (len(TEXTS), embedder.vectors.dim)
    assert together.dtype == np.float32
    for text, row in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(row, embedder.embed([text])[0], atol=1e-5)


def test_a_batch_larger_than_one_pass_keeps_its_order(embedder: BertEmbedder) -> None:
    texts = [f"item {number} " * (1 + number % 40) for number in range(120)]
    rows = embedder.embed(texts)
    for number in (0, 39, 64, 119):
        np.testing.assert_allclose(rows[number], embedder.embed([texts[number]])[0], atol=1e-5)


def test_every_embedding_has_unit_length(embedder: BertEmbedder) -> None:
    np.testing.assert_allclose(np.linalg.norm(embedder.embed([*TEXTS, ""]), axis=1), 1.0, atol=1e-5)


def test_no_texts_give_no_rows(embedder: BertEmbedder) -> None:
    assert embedder.embed([]).shape == (0, embedder.vectors.dim)


def test_text_behind_the_256th_token_does_not_count(embedder: BertEmbedder) -> None:
    start = "word " * (MAX_EMBEDDED_TOKENS - 2)  # [CLS] and [SEP] are the other two
    np.testing.assert_array_equal(embedder.embed([start])[0], embedder.embed([start + "volcano"])[0])


def test_a_paraphrase_is_nearer_than_another_subject(embedder: BertEmbedder) -> None:
    question, paraphrase, other = embedder.embed(
        [
            "How do I switch the heating off?",
            "To turn off the radiators, press the red button.",
            "Lunch is served at noon.",
        ]
    )
    assert cosine(question, paraphrase) > cosine(question, other) + 0.2


def test_threads_that_share_an_embedder_get_the_same_rows(embedder: BertEmbedder) -> None:
    expected = embedder.embed(TEXTS)
    results: list[Floats] = []
    threads = [threading.Thread(target=lambda: results.append(embedder.embed(TEXTS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for rows in results:
        np.testing.assert_array_equal(rows, expected)


def tiny_model(folder: Path, kind: str = "Bert", **changes: Any) -> Path:
    """With random weights and its own words, as sentence-transformers keeps them."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 40,
    }
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=60, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5, **sizes
    )
    model = getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    words = {
        "<s>": 0,
        "<pad>": 1,
        "</s>": 2,
        "<unk>": 3,
        **{f"w{number}": 4 + number for number in range(56)},
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    if changes:
        with_files(
            folder,
            **{
                "config.json": {**json.loads((folder / "config.json").read_text(encoding="utf-8")), **changes}
            },
        )
    return folder


def with_files(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


SAID = ["w1 w2 w3", "w5", " ".join(f"w{number % 50}" for number in range(70)), "w9 nobody w9 w9"]


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta"])
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_another_encoder_is_computed_as_transformers_does(kind: str, pooling: str, tmp_path: Path) -> None:
    import torch
    import transformers

    folder = with_files(
        tiny_model(tmp_path / "model", kind), **{"1_Pooling/config.json": {f"pooling_mode_{pooling}": True}}
    )
    opened = open_embedder(folder)
    assert opened.max_tokens == (40 if kind == "Bert" else 38)
    embedder = BertEmbedder(opened)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    for text, row in zip(SAID, embedder.embed(SAID), strict=True):
        ids = embedder._tokenizer.encode(text).ids
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        pooled = hidden.mean(dim=0) if pooling == "mean_tokens" else hidden[0]
        np.testing.assert_allclose(row, torch.nn.functional.normalize(pooled, dim=0).numpy(), atol=1e-4)


def test_a_model_that_tells_questions_from_passages_is_given_its_prompts(tmp_path: Path) -> None:
    files = {"config_sentence_transformers.json": {"prompts": {"query": "w1 ", "document": "w2 "}}}
    folder = with_files(tiny_model(tmp_path / "model"), **files)
    plain = BertEmbedder(open_embedder(folder, Prompts()))
    named = BertEmbedder(open_embedder(folder))
    np.testing.assert_allclose(named.embed(["w5"], query=True), plain.embed(["w1 w5"]), atol=1e-6)
    np.testing.assert_allclose(named.embed(["w5"]), plain.embed(["w2 w5"]), atol=1e-6)
    configured = BertEmbedder(
        configured_embedder(Settings(embedder=str(folder), embedder_query_prompt="w7 "))
    )
    np.testing.assert_allclose(configured.embed(["w5"], query=True), plain.embed(["w7 w5"]), atol=1e-6)
    assert len({embedder.vectors.embedder for embedder in (plain, named, configured)}) == 3


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"config.json": {"model_type": "t5"}},
            "is of type 't5'; memserve computes bert, roberta, xlm-roberta",
        ),
        ({"config.json": {"model_type": "bert"}}, "has no hidden_size"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "not by pooling_mode_max_tokens"),
        ({"tokenizer.json": {}}, "is no tokenizer"),
        ({"config.json": {"model_type": ["bert"]}}, "is of type"),
        ({"1_Pooling/config.json": {"include_prompt": False}}, "pools over the prompt too"),
        ({"modules.json": [{"type": "sentence_transformers.models.Dense"}]}, "does not compute Dense"),
        ({"modules.json": {"type": 1}}, "is no list of sentence-transformers' modules"),
        ({"model.safetensors": {}}, "cannot be read"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(
    files: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = with_files(tiny_model(tmp_path / "model"), **files)
    with pytest.raises(StartupError) as refused:
        BertEmbedder(open_embedder(folder))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "silu"},
        {"position_embedding_type": "relative_key"},
        {"num_hidden_layers": 9},
        {"num_attention_heads": 5},
    ],
)
def test_another_arithmetic_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StartupError):
        BertEmbedder(open_embedder(tiny_model(tmp_path / "model", **changes)))


def test_more_tokens_than_the_model_knows_are_refused_at_the_start(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["one-more"] = 60
    with pytest.raises(StartupError, match="its tokenizer has 61 tokens and it knows 60"):
        BertEmbedder(open_embedder(with_files(folder, **{"tokenizer.json": tokenizer})))


def test_texts_are_lower_case_where_the_model_wants_them_so(tmp_path: Path) -> None:
    folder = with_files(
        tiny_model(tmp_path / "model"),
        **{"sentence_bert_config.json": {"do_lower_case": True, "max_seq_length": 8}},
    )
    embedder = BertEmbedder(open_embedder(folder))
    np.testing.assert_allclose(embedder.embed(["W5 W7"]), embedder.embed(["w5 w7"]))
    np.testing.assert_allclose(
        embedder.embed(["w5 " * 6]), embedder.embed(["w5 " * 20]), err_msg="eight tokens count"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(StartupError, match=r"has no tokenizer\.json"):
        open_embedder(folder)
