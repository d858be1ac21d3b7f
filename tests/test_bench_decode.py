"""The speed of reading pictures: every way is measured, and told against the bare one."""

from programs import Program, launch


def test_every_way_is_measured():
    status, out, errors = Program(launch("bench"), "decode", "--pictures=1", "--repeat=1", "--width=64").wait()
    assert status == 0, errors
    lines = out.splitlines()
    assert lines[0].startswith("64 x 480, JPEG, ") and lines[2].startswith("bare: ") and lines[2].endswith(" 1.00")
    assert len(lines) == 7 and all(float(line.split()[-1]) > 0 for line in lines[2:])
