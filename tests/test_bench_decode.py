"""The speed of reading pictures and of checking records: every way is measured."""

from programs import Program, launch


def test_every_way_of_reading_pictures_is_measured():
    status, out, errors = Program(launch("bench"), "decode", "--pictures=1", "--repeat=1", "--width=64").wait()
    assert status == 0, errors
    lines = out.splitlines()
    assert lines[0].startswith("64 x 480, JPEG, ") and lines[2].startswith("bare: ") and lines[2].endswith(" 1.00")
    assert len(lines) == 7 and all(float(line.split()[-1]) > 0 for line in lines[2:])


def test_indexing_is_measured():
    status, out, errors = Program(launch("bench"), "index", "--megabytes=1").wait()
    assert status == 0, errors
    lines = out.splitlines()
    assert lines[0] == "2,048 rows, 2 MB" and "MB more than" in lines[-1]
    assert [line[:10].strip() for line in lines[1:-1]] == ["index", "open again", "read 10,00"]


def test_checking_is_measured_with_and_without_pictures():
    status, out, errors = Program(launch("bench"), "check", "--pictures=2", "--repeat=1", "--rows=9").wait()
    assert status == 0, errors
    assert [line.split()[0] for line in out.splitlines()[1:]] == [
        f"--pictures={how}" for how in ("none", "header", "decode")
    ]
