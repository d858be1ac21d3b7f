"""What the original adds to the questions of each benchmark, and how long it lets an answer be.

Source: utils/utils.py and the two modeling_trol.py of the original code.
"""

import dataclasses

LETTER = "\nAnswer with the option's letter from the given choices directly."
SHORT = "\nAnswer the question using a single word or phrase."
UNANSWERABLE = f"\nWhen the provided information is insufficient, respond with 'Unanswerable'. {SHORT.strip()}"
YES_OR_NO = "\nPlease answer yes or no."
IMAGE = "<image>"  # where the picture goes


@dataclasses.dataclass(frozen=True)
class Instruction:
    suffix: str
    max_new_tokens: int
    image_first: bool = True  # else the benchmark's own text says where pictures go


CHOICES = ("qbench", "sqa", "ai2d", "seed", "mmstar", "mmbench", "mmbench_cn", "mmbench_dev", "mmbench_cn_dev")
INSTRUCTIONS = {
    **dict.fromkeys(CHOICES, Instruction(LETTER, 5)),
    **dict.fromkeys(("vqav2", "gqa", "pope", "chartqa"), Instruction(SHORT, 5)),
    "vizwiz": Instruction(UNANSWERABLE, 512),
    "mmmu": Instruction(SHORT, 5, image_first=False),  # LETTER where the question has options
    "hallusionbench": Instruction(YES_OR_NO, 5, image_first=False),
    "mme": Instruction("", 5),
    "textvqa": Instruction("", 5),
    "mm-vet": Instruction("", 1024),
    "llava": Instruction("", 1024),
    "mathvista": Instruction("", 512),
    "mathverse": Instruction("", 512, image_first=False),
    "visualwebbench": Instruction("", 512),
    "easy_vqa": Instruction("", 4),  # ours, as `runner` asks it
    "demo": Instruction("", 512, image_first=False),
}


def instruct(benchmark: str, question: str) -> str:
    """The user's message: mark of the picture, question and instruction."""
    instruction = INSTRUCTIONS[benchmark]
    suffix = LETTER if benchmark == "mmmu" and "A." in question else instruction.suffix
    if benchmark == "hallusionbench" and suffix.strip() in question:
        suffix = ""
    return f"{IMAGE if instruction.image_first else ''}{question}{suffix}"
