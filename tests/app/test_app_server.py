# SPDX-License-Identifier: Apache-2.0
"""The page's server: answers, limits, and what a hostile request gets."""

from __future__ import annotations

import base64
import io
import threading
from typing import Any

import numpy as np
import pytest
from app_fakes import HalfMatcher, SlowLocator, SplitLocator
from PIL import Image

pytest.importorskip("starlette", reason="the extra app is not installed")
app = pytest.importorskip("patchword.app")
TestClient = pytest.importorskip("starlette.testclient").TestClient


def png(height: int = 20, width: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 200, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def pixels(url: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def make(limits: Any | None = None, locator: Any = None) -> tuple[Any, Any]:
    model = locator or SplitLocator()
    bench = app.Workbench(
        limits, locators={"photo": lambda: model, "sketch": lambda: model}, matcher=HalfMatcher
    )
    server = app.create_app(bench, allowed_hosts=("testserver", "127.0.0.1"))
    return TestClient(server, raise_server_exceptions=False), model


def ask(client: Any, picture: bytes = b"", **fields: str) -> Any:
    data = {"words": "dog, tree", "kind": "photo", "threshold": "0.5", **fields}
    return client.post("/api/locate", data=data, files={"picture": ("a.png", picture or png())})


def test_locate_labels_the_picture() -> None:
    client, _ = make()
    answer = ask(client).json()
    labels = pixels(answer["labels"])
    assert labels.shape == (20, 40)
    assert (labels[:, :20] == 1).all()
    assert (labels[:, 20:] == 2).all()
    assert [row["text"] for row in answer["legend"]] == ["dog", "tree"]
    assert [row["share"] for row in answer["legend"]] == [0.5, 0.5]
    assert pixels(answer["overlay"]).shape == (20, 40, 3)


def test_threshold_moves_without_computing_again() -> None:
    client, model = make()
    first = ask(client).json()
    fields = {"key": first["key"], "threshold": "0.95"}
    moved = client.post("/api/relabel", data=fields).json()
    assert (pixels(moved["labels"]) == 0).all()
    assert ask(client).json()["key"] == first["key"]
    assert model.calls == 1


def test_results_are_forgotten_when_memory_is_full() -> None:
    client, _ = make(app.Limits(kept_bytes=1))
    first = ask(client).json()["key"]
    ask(client, words="cat")
    gone = client.post("/api/relabel", data={"key": first, "threshold": "0.5"})
    assert gone.status_code == 410
    assert "send it again" in gone.json()["error"]


def test_match_shows_both_pictures() -> None:
    client, _ = make()
    answer = client.post(
        "/api/match", files={"picture0": ("a", png()), "picture1": ("b", png(30, 30))}
    ).json()
    assert answer["score"] == 0.75
    assert answer["share"] == [0.5, 0.5]
    assert pixels(answer["overlay"]).ndim == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"words": " ,\n "}, "must name at least one thing"),
        ({"words": ",".join(f"w{i}" for i in range(61))}, "at most 60 things, got 61"),
        ({"words": "x" * 200}, "at most 120 characters"),
        ({"kind": "video"}, "kind must be one of"),
        ({"threshold": "2"}, r"threshold must be in \[0, 1\]"),
        ({"threshold": "nan"}, r"threshold must be in \[0, 1\]"),
        ({"threshold": "high"}, "threshold must be a number, got 'high'"),
    ],
)
def test_bad_fields_get_one_sentence(fields: dict[str, str], said: str) -> None:
    client, model = make()
    answer = ask(client, **fields)
    assert answer.status_code == 400
    message = answer.json()["error"]
    assert "\n" not in message
    with pytest.raises(ValueError, match=said):
        raise ValueError(message)
    assert model.calls == 0


@pytest.mark.parametrize(
    "data", [b"not a picture", png()[:60], b"GIF89a", b"\0" * 100], ids=["text", "cut", "gif", "0"]
)
def test_bad_pictures_get_one_sentence_without_a_path(data: bytes) -> None:
    client, _ = make()
    answer = ask(client, data)
    assert answer.status_code == 400
    assert "the picture" in answer.json()["error"]
    assert "/tmp" not in answer.json()["error"]


def test_missing_file_is_said() -> None:
    client, _ = make()
    fields = {"words": "a", "kind": "photo", "threshold": "0.5"}
    answer = client.post("/api/locate", data=fields)
    assert answer.status_code == 400
    assert "picture must be a picture file" in answer.json()["error"]


def test_large_requests_and_pictures_are_refused() -> None:
    client, model = make(app.Limits(max_bytes=5000, max_pixels=1000))
    assert ask(client, b"x" * 6000).status_code == 413
    assert ask(client, png(40, 40)).status_code == 400

    def pieces() -> Any:
        for _ in range(10):
            yield b"y" * 1000

    kind = {"content-type": "multipart/form-data; boundary=b"}
    streamed = client.post("/api/locate", content=pieces(), headers=kind)
    assert streamed.status_code == 413
    assert model.calls == 0


def test_large_pictures_are_reduced() -> None:
    client, _ = make(app.Limits(max_side=10))
    assert ask(client, png(20, 40)).json()["size"] == [5, 10]


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/%2e%2e/server.py",
        "/page/index.html",
        "/etc/passwd",
        "/page//app.js",
        "/app.py",
    ],
)
def test_no_path_of_the_server_can_be_reached(path: str) -> None:
    client, _ = make()
    assert client.get(path).status_code == 404


def test_page_and_its_policy() -> None:
    client, _ = make()
    page = client.get("/")
    assert page.status_code == 200
    assert "patchword" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/app.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/style.css").status_code == 200


def test_foreign_pages_and_names_are_refused() -> None:
    client, model = make()
    posted = client.post(
        "/api/relabel",
        data={"key": "k", "threshold": "0"},
        headers={"origin": "http://evil.example"},
    )
    assert posted.status_code == 403
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert model.calls == 0


def test_busy_server_says_so() -> None:
    model = SlowLocator()
    client, _ = make(app.Limits(max_waiting=0), locator=model)
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(ask(client)))
    first.start()
    assert model.started.wait(30)
    second = ask(client, words="cat")
    model.go.set()
    first.join(30)
    assert second.status_code == 503
    assert "waiting" in second.json()["error"]
    assert answers[0].status_code == 200
