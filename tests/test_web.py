"""Where an app is served."""

import pytest

from trol_jax.errors import UserError

web = pytest.importorskip("trol_jax.serve.web", reason="uvicorn is not installed", exc_type=ModuleNotFoundError)


def test_a_port_in_use_is_told():
    with web.listen("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port}: Address already in use; choose"):
            web.listen("127.0.0.1", port)
