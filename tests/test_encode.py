"""A record of each source as the tokens that a model of each family reads, and those of them that it learns.

data/conversations.json was written by hand, apart from `prompts` and `encode`: rows in the formats of the sources (made
up), sizes of their pictures (width, height), and the text of the conversation in spans, learned or not. The ids are
those of the whole text by the sentencepiece library (internlm2) and by `tokenizers` (phi3) with the tokenisers of
data/golden, each of which gives the ids that the original recorded there. A picture has 3 tokens in internlm2, and in
phi3 2 a tile; how many tiles it has is recorded of the original.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert.tokenizer import read_tokenizer
from test_images import encoded
from test_sources import write
from trol_jax.data.encode import SampleEncoder
from trol_jax.data.paths import resolve
from trol_jax.data.prompts import SYSTEM
from trol_jax.data.sources import SOURCES, open_sources

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "conversations.json").read_text(encoding="utf-8"))
TILES = json.loads((DATA / "golden/preprocess/preprocess.json").read_text())["grids"]
SHAPES = {"internlm2": dict(image_size=490, tile_tokens=3), "phi3": dict(image_size=448, tile_tokens=2)}


@pytest.fixture(scope="module", params=SHAPES)
def tokenizer(request):
    return read_tokenizer(DATA / "golden/tokenizer" / request.param)


@pytest.mark.parametrize("name", SOURCES)
def test_a_record_of_each_source_has_the_recorded_text_ids_and_mask(name, tokenizer, tmp_path):
    case, family = GOLDEN[name], tokenizer.format.name
    row, pictures = case["row"], [Image.new("RGB", size) for size in case["sizes"]]
    if name == "mathvision":
        row = row | {"decoded_image": {"bytes": encoded(pictures[0]), "path": "1.png"}}
    write(tmp_path, name, [row])
    sample = open_sources(tmp_path, [name])[name][0]
    for place, picture in zip(sample.pictures, pictures, strict=True):
        if not isinstance(place, bytes):
            path = Path(resolve(str(tmp_path), place))
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    encode = SampleEncoder(str(tmp_path), tokenizer, max_tiles=6, max_length=2048, system=SYSTEM, **SHAPES[family])
    made, spans = encode(sample), case[family]
    assert made.tokens.tolist() == [number for span in spans for number in span["ids"]]
    assert made.loss_mask.tolist() == [span["learned"] for span in spans for _ in span["ids"]]
    recorded = tuple(1 if family == "internlm2" else TILES[f"{width}x{height}"] for width, height in case["sizes"])
    assert (made.tiles, made.cut) == (recorded, 0)


@pytest.mark.parametrize("name", SOURCES)
def test_the_recorded_ids_are_those_of_the_recorded_text(name, tokenizer):
    spans = GOLDEN[name][tokenizer.format.name]
    ids = [number for span in spans for number in span["ids"]]
    assert tokenizer.encode("".join(span["text"] for span in spans)) == ids
    answers = [span["text"] for span in spans if span["learned"]]
    assert all(answer.endswith(tokenizer.format.end) for answer in answers)
    assert [span["learned"] for span in spans] == [False, True] * len(answers)
    marks = np.array(ids) == tokenizer.image_id
    tiles = [1 if tokenizer.format.name == "internlm2" else TILES[f"{w}x{h}"] for w, h in GOLDEN[name]["sizes"]]
    assert marks.sum() == SHAPES[tokenizer.format.name]["tile_tokens"] * sum(tiles)
