"""What a checkpoint holds beside its arrays: sizes of the model, tokeniser, settings of the run, released files."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from trol_jax import checkpoint, manifest, typed
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import UserError
from trol_jax.models.variants import ModelConfig
from trol_jax.train import config as config_lib

MODEL, TOKENIZER, BASE = "model.json", "tokenizer.json", "base.json"
RELEASED = "released"  # folder of files that came with converted weights and go back with them


@dataclasses.dataclass(frozen=True)
class Base:
    """A checkpoint that has what was not trained."""

    path: str  # of one step
    identity: str  # see `manifest.identity`

    @classmethod
    def of(cls, step_dir: Path) -> "Base":
        checkpoint.require_sound(step_dir, only=[])  # the manifest alone
        return cls(str(step_dir), manifest.identity(step_dir))

    def find(self) -> Path:
        """Its step directory. UserError if it is gone, or is another now; its arrays are not looked at."""
        step_dir = checkpoint.resolve(self.path)
        if (found := Base.of(step_dir).identity) != self.identity:
            raise UserError(f"{step_dir} is {found}; the run began with {self.identity}: bring that back")
        return step_dir

    def find_sound(self) -> Path:
        """The same, after all checksums agree."""
        step_dir = self.find()
        if problems := manifest.verify(step_dir):
            raise UserError(
                f"checkpoint {step_dir} is damaged: {problems[0]}; the run needs this very one: bring back a copy"
            )
        return step_dir


@dataclasses.dataclass(frozen=True)
class Saved:
    model: ModelConfig
    tokenizer: Tokenizer | None  # None: converted from a folder without one
    settings: config_lib.RunConfig | None = None  # None: converted, not trained
    released: Mapping[str, bytes] = dataclasses.field(default_factory=dict)  # by file name
    base: Base | None = None  # where only some parameters were trained, which alone are in the checkpoint

    def files(self) -> dict[str, bytes]:
        """For `checkpoint.Checkpoints.save`, which stores the settings itself."""
        files = {f"{RELEASED}/{name}": content for name, content in self.released.items()}
        files[MODEL] = checkpoint.to_json(typed.to_dict(self.model))
        if self.base is not None:
            files[BASE] = checkpoint.to_json(typed.to_dict(self.base))
        if self.tokenizer is not None:
            files[TOKENIZER] = self.tokenizer.dump()
        return files


def read(step_dir: str | os.PathLike) -> Saved:
    """Of one step, each file checked by its checksum. UserError for one that is missing, damaged or not understood."""
    step_dir = Path(step_dir)
    model = typed.from_dict(checkpoint.read_json(step_dir, MODEL), ModelConfig, f"{step_dir / MODEL}: model", old=True)
    path = step_dir / TOKENIZER
    files = manifest.read(step_dir)["files"]
    tokenizer = Tokenizer.parse(checkpoint.read_file(step_dir, TOKENIZER), path) if TOKENIZER in files else None
    base = None
    if BASE in files:
        base = typed.from_dict(checkpoint.read_json(step_dir, BASE), Base, str(step_dir / BASE))
    folder = step_dir / RELEASED
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    released = {name: checkpoint.read_file(step_dir, f"{RELEASED}/{name}") for name in names}
    return Saved(model, tokenizer, read_settings(step_dir), released, base)


def read_whole(step_dir: str | os.PathLike) -> Saved:
    """As `read`; UserError where only what was trained is there."""
    here = read(step_dir)
    if here.base is not None:
        raise UserError(
            f"{step_dir} has only what was trained; make it whole first: "
            f"python -m launch.merge --checkpoint={step_dir} --dst=DIR"
        )
    return here


def read_settings(step_dir: str | os.PathLike) -> config_lib.RunConfig | None:
    """Only the settings of the run; None where the arrays were converted."""
    raw = checkpoint.read_config(step_dir)
    where = f"{Path(step_dir) / checkpoint.CONFIG}: config"
    return None if raw is None else config_lib.from_dict(raw, where, old=True)
