from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.cli.arguments import IMAGE
from balenaflash.errors import ImageError
from balenaflash.source.location import StandardInput, Url, parse_location, parse_url


@pytest.mark.parametrize(
    "text", ["a.img", "./-", "/dev/sda", "http:/x", "c:", "a b.img", "x/https://y", "", "é.img"]
)
def test_a_path_is_a_path(text: str) -> None:
    assert parse_location(text) == Path(text)


def test_a_dash_is_standard_input() -> None:
    assert parse_location("-") == StandardInput()
    assert str(parse_location("-")) == "-"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://files.example/a/b.img.xz", "https://files.example/a/b.img.xz"),
        ("HTTP://Files.Example:8080", "http://files.example:8080/"),
        ("https://u:p@files.example/a.img?X-Sig=abc#f", "https://files.example/a.img"),
        ("http://[::1]:80/a.img", "http://[::1]:80/a.img"),
        ("https://files.example/a b%20c/\x1b[2J", "https://files.example/a%20b%20c/%1B%5B2J"),
        ("https://bücher.example/ü.img", "https://xn--bcher-kva.example/%C3%BC.img"),
    ],
)
def test_an_address_is_shown_without_its_secrets(text: str, shown: str) -> None:
    location = parse_location(text)
    assert isinstance(location, Url)
    assert str(location) == shown
    assert f"{location!r}" == f"Url(shown='{shown}')"


def test_the_query_is_kept_for_the_server() -> None:
    url = parse_url("https://u:p%40@h/a.img?a=1&b=%2F+%C3%A9&c=/d?e=f#g")
    assert url.address == "https://u:p%40@h/a.img?a=1&b=%2F+%C3%A9&c=/d?e=f"


@pytest.mark.parametrize(
    "text",
    [
        "ftp://h/secret",
        "file:///secret",
        "s3://secret/x",
        "http:///secret",
        "http://u:secret@/x",
        "http://h:secret/x",
        "http://h:99999/secret",
        "http://[h/secret",
        "http://a secret/x",
        "http://" + "h" * 64 + ".secret/x",
        "http://..secret/x",
    ],
)
def test_an_address_that_cannot_be_read_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ImageError) as failure:
        parse_location(text)
    assert failure.value.code == "image-address-invalid"
    assert "secret" not in f"{failure.value} {failure.value.hint}"


@given(st.text(max_size=40))
def test_any_text_is_a_location_or_refused(text: str) -> None:
    for candidate in (text, f"http://{text}"):
        try:
            location = parse_location(candidate)
        except ImageError:
            continue
        assert str(location).isprintable() or isinstance(location, Path)
        if isinstance(location, Url):
            location.address.encode("ascii")


@click.command()
@click.argument("image", type=IMAGE)
def show(image: object) -> None:
    click.echo(f"{type(image).__name__} {image}")


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("dir//a.img", "PosixPath dir/a.img"),
        ("-", "StandardInput -"),
        ("https://u:p@h/a.img?s=1", "Url https://h/a.img"),
    ],
)
def test_the_argument_of_a_command_is_a_location(argument: str, answer: str) -> None:
    result = CliRunner().invoke(show, [argument])
    assert (result.exit_code, result.output) == (0, answer + "\n")


def test_the_argument_of_another_kind_is_wrong_usage() -> None:
    result = CliRunner().invoke(show, ["ftp://h/a.img"])
    assert result.exit_code == 2
    assert "addresses with ftp:// cannot be read" in result.output
    assert ". Give a path, - for" in result.output
