"""The format of prepared data: that of TensorFlow Datasets, written and read without it.

A dataset is a folder: array_record files whose records are tf.train.Example messages, features.json (what a record
holds) and dataset_info.json (splits and their files). Here each source is a split.
"""

import functools

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from trol_jax.data.sources.sample import Sample

NAME, VERSION = "trol_mixture", "1.0.0"
INFO, FEATURES = "dataset_info.json", "features.json"
FILES = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # of the shards, in the words of TFDS
WRITER = "group_size:1,zstd:1"  # a record at a time can be read; pictures hardly shrink, text by half
CLASSES = "tensorflow_datasets.core.features"
ABOUT = """Conversations about pictures, each source a split, in the order of its file, with the rows that its filter \
keeps: the eleven sources of TroL's training mixture, or some of them."""
# tf.train.Example, as far as bytes need it: a map from names to lists of them.
EXAMPLE = """
name: "example.proto" package: "trol_jax" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Feature"
  field { name: "bytes_list" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".trol_jax.BytesList" } }
message_type { name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE
    type_name: ".trol_jax.Features.FeatureEntry" }
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".trol_jax.Feature" } } }
message_type { name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".trol_jax.Features" } }
"""


def shard_name(split: str, number: int, count: int) -> str:
    return f"{NAME}-{split}.array_record-{number:05}-of-{count:05}"


def encode(sample: Sample) -> bytes:
    """A record. sample.pictures: encoded; the same bytes each time for the same sample."""
    roles, texts = zip(*sample.turns, strict=True) if sample.turns else ((), ())
    values = {
        "source": [_bytes(sample.source)], "id": [_bytes(sample.id)],
        "turns/role": map(_bytes, roles), "turns/text": map(_bytes, texts), "pictures": sample.pictures,
    }  # fmt: skip
    example = _message()()
    for name, each in values.items():
        example.features.feature[name].bytes_list.value.extend(each)
    return example.SerializeToString(deterministic=True)


def decode(record: bytes) -> Sample:
    """The sample of `encode`. Exception for bytes that are none."""
    features = _message().FromString(record).features.feature
    get = lambda name: features[name].bytes_list.value  # noqa: E731
    turns = zip(map(_text, get("turns/role")), map(_text, get("turns/text")), strict=True)
    return Sample(_text(get("source")[0]), _text(get("id")[0]), tuple(turns), tuple(get("pictures")))


def features(pictures: str) -> dict:
    """features.json of data whose pictures are "keep" or "jpeg", as `prepare` takes them."""
    picture = {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"}
    picture |= {"encodingFormat": "jpeg"} if pictures == "jpeg" else {}
    turn = _dict({
        "role": _text_feature("Who speaks: user, then assistant, and so on."),
        "text": _text_feature("What is said; <image> stands where a picture goes, in the order of `pictures`."),
    })  # fmt: skip
    return _dict({
        "source": _text_feature("Name of the source, as that of the split."),
        "id": _text_feature("As in the data, or the row's number where the data has none; not always unique."),
        "turns": _sequence(turn, "The conversation."),
        "pictures": _sequence(
            _feature("image_feature", "Image", {"image": picture}),
            "None, one or more, PNG or JPEG; their EXIF orientation is not applied by TensorFlow Datasets.",
        ),
    })  # fmt: skip


def dataset_info(splits: dict[str, tuple[list[int], int]]) -> dict:
    """dataset_info.json. splits: (samples of each shard, bytes of all samples) by name."""
    return {
        "name": NAME, "version": VERSION, "description": ABOUT, "fileFormat": "array_record",
        "splits": [
            {
                "name": name, "filepathTemplate": FILES, "numBytes": str(size),
                "shardLengths": [str(length) for length in lengths],
            }
            for name, (lengths, size) in splits.items()
        ],
    }  # fmt: skip


def _feature(module: str, name: str, body: dict, description: str = "") -> dict:
    return {"pythonClassName": f"{CLASSES}.{module}.{name}", "description": description, **body}


def _text_feature(description: str) -> dict:
    return _feature("text_feature", "Text", {"text": {}}, description)


def _dict(parts: dict[str, dict]) -> dict:
    return _feature("features_dict", "FeaturesDict", {"featuresDict": {"features": parts}})


def _sequence(feature: dict, description: str) -> dict:
    return _feature("sequence_feature", "Sequence", {"sequence": {"feature": feature, "length": "-1"}}, description)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # halves of a pair come out of JSON


def _text(data: bytes) -> str:
    return data.decode(errors="surrogatepass")


@functools.cache
def _message() -> type:
    file = text_format.Parse(EXAMPLE, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("trol_jax.Example"))
