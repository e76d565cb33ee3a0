"""The store where ranks meet."""

from typing import Any

import pytest
import torch.distributed as dist

from mgpu_nb.distributed.rendezvous import join, serve


def test_a_store_is_served_where_its_port_is_free_and_others_join() -> None:
    store = serve(10.0)
    join("127.0.0.1", store.port, 10.0).set("key", "value")
    assert store.get("key") == b"value"


def test_a_store_is_served_by_a_torch_whose_libuv_takes_no_open_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That of torch 2.4 to 2.7: only the older backend of its store takes one."""
    real: Any = dist.TCPStore  # type: ignore[attr-defined]
    asked = []

    def old(*arguments: Any, use_libuv: bool = True, **options: Any) -> Any:
        asked.append(use_libuv)
        if use_libuv and "master_listen_fd" in options:
            raise NotImplementedError("The libuv TCPStore backend does not support ... a listen fd")
        return real(*arguments, use_libuv=use_libuv, **options)

    monkeypatch.setattr(dist, "TCPStore", old)
    store = serve(10.0)
    assert asked == [True, False]
    join("127.0.0.1", store.port, 10.0).set("key", "value")
    assert store.get("key") == b"value"
