"""The page of the sharding study, of reports that are made up."""

from bench import sharding


def report(milliseconds: float, network: float, fits=True) -> dict:
    seconds = {"arithmetic": milliseconds / 1e3, "network fsdp": network / 1e3, "network tensor": network / 1e3}
    return {
        "fastest": milliseconds / 1e3, "slowest": (milliseconds + 2 * network) / 1e3, "mfu": 0.5, "wire": 2.0**30,
        "fits": fits, "bound": "arithmetic", "seconds": seconds, "left_out": "predicted",
        "traffic": [{"seconds": network / 1e3}] * 2,
    }  # fmt: skip


def test_the_page_shows_what_is_known_and_the_best_mesh():
    cases = [case for case in sharding.cases() if case[:3] == ("train", "trol_7b", 64)]
    assert [case[3] for case in cases] == ["fsdp=64"] * 4 + ["fsdp=16,tensor=4"] * 4
    known = {sharding.name(*case): report(100 * case[4], 10 if "tensor" in case[3] else 30) for case in cases[:6]}
    known[sharding.name(*cases[0])]["fits"] = False
    text = sharding.page(["train"], known)
    assert text.count("### ") == 1 and "### trol_7b on 64 chips (v5p-128)" in text and "# Training" in text
    assert "| 1 | 100 to 160 ms, MFU 50%, does not fit | **100 to 120 ms, MFU 50%** | 1 and 1 | arithmetic |" in text
    assert "| 4 | **400 to 460 ms, MFU 50%** | ? | 1 and ? | arithmetic |" in text
    assert (
        "--variant=trol_7b --task=train --target=v5p-128 --mesh=fsdp=64" in text and "All of it is predicted." in text
    )
    assert sharding.network(known[sharding.name(*cases[0])]) == 0.06
    assert sharding.plot("train", known).startswith(b"\x89PNG")


def test_what_was_planned_is_read_again(tmp_path):
    file = tmp_path / "sharding.jsonl"
    assert sharding.read(file) == {}
    file.write_text('{"command": "a", "report": {"b": 1}}\n')
    assert sharding.read(file) == {"a": {"b": 1}}
