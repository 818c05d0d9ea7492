"""URLs of a database and of MLflow from a stranger: one clear line, and no word of the password in it."""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mario_dist.errors import UserError
from mario_dist.registry import Tracker
from mario_dist.registry.connection import import_mlflow, redact
from mario_dist.store import RunStore

HOSTILE = settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SECRET = "Zq7Xw"
"""In every password, and in nothing else."""
NOISE = st.text(st.sampled_from("aä 0:/@?#%&=+;'\"\\[]<>\0\n\x1b$`{}"), max_size=4)
PASSWORDS = st.builds(lambda before, after: f"{before}{SECRET}{after}", NOISE, NOISE)
WRITTEN = st.sampled_from([str, quote, lambda text: quote(text, safe="")])
# Nobody listens at any of them, and none takes a name server.
HOSTS = st.sampled_from(
    [
        "127.0.0.1:9",
        "localhost:9",
        "[::1]:9",
        "127.0.0.1:99999",
        "127.0.0.1:x",
        "[::1",
        "",
        ":",
        "127.0.0.1:9,::1",
    ]
)
PATHS = NOISE.map(lambda text: f"/{text}")
QUERIES = st.sampled_from(
    [
        "",
        f"?password={SECRET}",
        "?sslmode=bad",
        "?connect_timeout=x",
        "?a=1&a=2",
        "?passfile=/dev/zero",
        "?=",
        "?%zz",
    ]
)


def urls(schemes: tuple[str, ...]) -> st.SearchStrategy[str]:
    """All with a password, some of them well-formed."""

    def one(scheme: str, password: str, write: Callable[[str], str], host: str, path: str, query: str) -> str:
        return f"{scheme}://user:{write(password)}@{host}{path}{query}"

    return st.builds(one, st.sampled_from(schemes), PASSWORDS, WRITTEN, HOSTS, PATHS, QUERIES)


def assert_one_line_without_a_secret(text: str) -> None:
    assert SECRET not in text
    assert text
    assert "\n" not in text
    assert len(text) < 500


@given(
    urls(
        (
            "postgresql",
            "postgres",
            "postgresql+psycopg2",
            "postgresql+asyncpg",
            "sqlite",
            "mysql",
            "http",
            "\x1b[2J",
        )
    )
)
@example(f"postgresql://user:{SECRET}@127.0.0.1:9/db?host=127.0.0.1&password={SECRET}")
@example(f"user:{SECRET}@127.0.0.1:9/db")
@example(f"postgresql:/user:{SECRET}@127.0.0.1:9/db")
@example(f"://user:{SECRET}@h/db")
@example(f"postgresql://127.0.0.1:9/db?user=u&password={SECRET}&sslmode=bad")
@example(f"postgresql://u:%{SECRET}@127.0.0.1:9/db")
@example(f"postgresql://user%3A{SECRET}@127.0.0.1:9/db")
@example(f"postgresql://u@127.0.0.1:9/db&password={SECRET}")
@example(f"postgresql://u@127.0.0.1:9/db;password={SECRET}")
@example(f"postgresql://u@127.0.0.1:9/db#password={SECRET}")
@example(f"postgresql://127.0.0.1:9/db?port={SECRET}")
@example(f"sqlite+{SECRET}:///x")
@example(f"sqlite+aiosqlite:///{SECRET}")
@example(f"sqlite://:{SECRET}@/x.db")
@example(f"host=127.0.0.1 port=9 user=u password={SECRET} dbname=db")
@example(f"Server=h;User Id=u;Password={SECRET}")
@example(f"postgresql:h/db?user=u&password={SECRET}")
@example(f"postgres//u:{SECRET}")
@example(f"h/db?user=u&password={SECRET}")
@HOSTILE
def test_any_database_url_is_refused_in_one_line_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        RunStore(url)
    assert_one_line_without_a_secret(str(caught.value))
    assert list(tmp_path.iterdir()) == []


@given(urls(("postgresql", "postgres", "http", "https", "sqlite", "databricks", "file", "mysql", "\x1b[2J")))
@example(f"user:{SECRET}@127.0.0.1:9")
@example(f"http:/user:{SECRET}@127.0.0.1:9")
@example(f"http://127.0.0.1:9/?token={SECRET}")
@example(f"postgresql://127.0.0.1:9/db?user=u&password={SECRET}&sslmode=bad")
@example(f"http://u:%{SECRET}@127.0.0.1:9")
@example(f"http://127.0.0.1:9/#token={SECRET}")
@example(f"http://127.0.0.1:9/?token={SECRET}%2Bx")
@example(f"http://127.0.0.1:9/?pwd={SECRET}+x")
@settings(HOSTILE, max_examples=60)
def test_any_tracking_uri_is_refused_in_one_line_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    import_mlflow()
    with caplog.at_level(logging.INFO), pytest.raises(UserError) as caught:
        Tracker(uri)
    assert_one_line_without_a_secret(str(caught.value))
    assert SECRET not in caplog.text


@given(urls(("postgresql", "http", "https")))
@example(f"http://h/#token={SECRET}")
@example(f"http://h/;token={SECRET}")
@example(f"postgresql://h/db&password={SECRET}")
@HOSTILE
def test_what_a_message_shows_of_a_uri_has_no_password(uri: str) -> None:
    assert SECRET not in redact(uri)


@given(st.text(st.characters(exclude_characters="/~"), min_size=1, max_size=12))
@example("file:x")
@example("..")
@example("a%2F..%2Fb")
@example("x?mode=memory")
@example("\x1b[2J")
@settings(HOSTILE, max_examples=15)
def test_a_database_file_of_any_name_is_made_here_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "outside" / "here"
    here.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    for url in (name, f"sqlite:///{name}"):
        with suppress(UserError):
            RunStore(url).close()
    assert [path.name for path in here.parent.iterdir()] == ["here"]


@pytest.mark.parametrize(
    "path", ["10:00/runs.db", "a@b/runs.db", "with space/runs.db", "ü/runs.db", "postgres.db"]
)
def test_unusual_paths_are_taken(path: str, tmp_path: Path) -> None:
    RunStore(f"{tmp_path}/me:x@home/{path}").close()
    assert (tmp_path / "me:x@home" / path).exists()
