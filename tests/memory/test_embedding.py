"""The numpy embedder against transformers on the same weights."""

import threading

import numpy as np
import pytest

from memserve.memory.embedding import EMBEDDING_DIM, MAX_EMBEDDED_TOKENS, Floats, MiniLmEmbedder, bundled_model_dir

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


def test_embeddings_equal_those_of_transformers(embedder: MiniLmEmbedder) -> None:
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


def test_a_batch_gives_each_text_what_it_gets_alone(embedder: MiniLmEmbedder) -> None:
    together = embedder.embed(TEXTS)
    assert together.shape == (len(TEXTS), EMBEDDING_DIM)
    assert together.dtype == np.float32
    for text, row in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(row, embedder.embed([text])[0], atol=1e-5)


def test_a_batch_larger_than_one_pass_keeps_its_order(embedder: MiniLmEmbedder) -> None:
    texts = [f"item {number} " * (1 + number % 40) for number in range(120)]
    rows = embedder.embed(texts)
    for number in (0, 39, 64, 119):
        np.testing.assert_allclose(rows[number], embedder.embed([texts[number]])[0], atol=1e-5)


def test_every_embedding_has_unit_length(embedder: MiniLmEmbedder) -> None:
    np.testing.assert_allclose(np.linalg.norm(embedder.embed([*TEXTS, ""]), axis=1), 1.0, atol=1e-5)


def test_no_texts_give_no_rows(embedder: MiniLmEmbedder) -> None:
    assert embedder.embed([]).shape == (0, EMBEDDING_DIM)


def test_text_behind_the_256th_token_does_not_count(embedder: MiniLmEmbedder) -> None:
    start = "word " * (MAX_EMBEDDED_TOKENS - 2)  # [CLS] and [SEP] are the other two
    np.testing.assert_array_equal(embedder.embed([start])[0], embedder.embed([start + "volcano"])[0])


def test_a_paraphrase_is_nearer_than_another_subject(embedder: MiniLmEmbedder) -> None:
    question, paraphrase, other = embedder.embed(
        ["How do I switch the heating off?", "To turn off the radiators, press the red button.", "Lunch is served at noon."]
    )
    assert cosine(question, paraphrase) > cosine(question, other) + 0.2


def test_threads_that_share_an_embedder_get_the_same_rows(embedder: MiniLmEmbedder) -> None:
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
