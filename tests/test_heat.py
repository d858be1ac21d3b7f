"""The gate of a token is shown where the token lies."""

import numpy as np
import pytest

import tiny
from fixtures import QUESTIONS
from trol_jax.data.images import prepare
from trol_jax.data.prompts import FORMATS, encode_prompt
from trol_jax.data.tokenizer import train_tokenizer
from trol_jax.evals import heat
from trol_jax.ops.image import patchify, pixel_shuffle

SIZES = {"internlm2": [(16, 16), (16, 16)], "phi3": [(32, 48), (16, 16), (32, 32)]}  # no pixel is resized


def means(blocks: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean of each of the even parts of a picture."""
    height, width = blocks.shape[:2]
    return blocks.reshape(rows, height // rows, columns, width // columns, -1).mean(axis=(1, 3, 4))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_map_of_brightness_is_the_picture(family):
    config = tiny.config(family, max_tiles=6 if family == "phi3" else 1)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES[family]]
    tiles = [prepare(picture, family, config.vision.image_size, config.max_tiles) for picture in pictures]
    patches = patchify(np.concatenate(tiles).astype(np.float32), config.vision.patch_size)
    tokens = pixel_shuffle(patches, config.shuffle) if config.shuffle > 1 else patches
    gate = np.asarray(tokens.mean(axis=-1)).reshape(1, -1)
    made = heat.maps(np.concatenate([gate, gate + 1]), [picture.shape[:2] for picture in pictures], config)
    assert sum(each.tokens for each in made) == gate.shape[1]
    for picture, each, its in zip(pictures, made, tiles, strict=True):
        np.testing.assert_allclose(each.cells[0], means(picture, *each.cells.shape[1:]), atol=1e-3)
        np.testing.assert_allclose(heat.layer(each.cells, 2), each.cells[0] + 1, atol=1e-3)
        np.testing.assert_allclose(heat.layer(each.cells, 0), each.cells[0] + 0.5, atol=1e-3)
        assert (each.whole is None) == (len(its) == 1)
        if each.whole is not None:
            np.testing.assert_allclose(each.whole[0], means(its[-1], *each.whole.shape[1:]), atol=1e-3)


@pytest.mark.parametrize("count", [3, 5, 8])
def test_tokens_of_other_pictures_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} image tokens are not those of 1 pictures"):
        heat.maps(np.zeros((2, count), np.float32), [(16, 16)], tiny.config("phi3", shuffle=2))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("pictures", [0, 1, 2])
@pytest.mark.parametrize("system", ["", "be kind"])
def test_words_are_the_question_and_have_the_gates_of_its_tokens(family, pictures, system):
    tokenizer = train_tokenizer([text for pair in QUESTIONS for text in pair], FORMATS[family], vocab_size=340)
    question = " what color\n is <image> the shape, naïve 漢? "
    maps = [heat.Map(np.zeros((2, 2, 2), np.float32))] * pictures
    prompt = encode_prompt(tokenizer, tokenizer.format, question, [each.tokens for each in maps], system)
    number = np.arange(len(prompt), dtype=np.float32)
    words = heat.words(tokenizer, prompt, np.stack([number, -number]), question, maps, system)
    assert "".join(text for text, _ in words).lstrip() == question.lstrip()  # marks of phi3 swallow space
    gates = np.array([gate for _, gate in words])
    assert (gates[:, 1] == -gates[:, 0]).all() and (np.diff(gates[:, 0]) > 0).all()
    places = {text: gate for text, (gate, _) in words}
    assert tokenizer.decode([prompt[int(places[" shape"])]]) == " shape"
    letter = places["漢"]  # its three bytes are tokens
    assert tokenizer.decode(prompt[int(letter) - 1 : int(letter) + 2]) == "漢"


def test_paint_is_as_bright_as_the_picture():
    white = np.full((6, 9, 3), 255, np.uint8)
    values = np.array([[0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])
    painted = heat.paint(white, values, 0.0, 1.0)
    np.testing.assert_array_equal(painted[::3, ::3], heat.colors(values, 0.0, 1.0))
    np.testing.assert_array_equal(painted[2, 8], painted[0, 6])
    np.testing.assert_allclose(heat.paint(0 * white, values, 0.0, 1.0), heat.DARKEST * painted, atol=0.5)
    assert (heat.colors(np.full(2, 0.3), 0.3, 0.3) == heat.colors(np.zeros(2), 0, 1)).all()
