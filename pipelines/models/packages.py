"""Where the wheel of a package lies, by pip's own settings: index, further indexes, folders to look in, certificate, proxy.

Only pip knows them: they stand in its files and in PIP_* variables, and an index's address may hold a password. So no address is ever part of a
message; `IndexTrouble` names the host alone.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

import requests
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version
from requests.adapters import HTTPAdapter

from pipelines.errors import UserError

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"
PAGE = 64 << 20
"""Most bytes of an index's page that are read."""
TIMEOUT = 60.0
"""Seconds without an answer, unless pip's settings say otherwise."""
DEFAULT = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
"""What pip asks where nothing is set; no command of pip's tells."""
SCOPES = ("global", "install", "download", ":env:")
"""Sections of pip's settings; each counts before those on its left."""


class IndexTrouble(UserError):
    """The index cannot be reached or does not have the package."""


@dataclass(frozen=True)
class Link:
    """A wheel. address: its URL, which may hold a password, or None where it is `file`. sha256: as the index says, None where it does not."""

    name: str
    address: str | None = field(repr=False)
    file: Path | None
    sha256: str | None

    @property
    def host(self) -> str:
        return host(self.address or "")


@dataclass(frozen=True)
class Settings:
    """What pip is told, so far as it says where packages lie. indexes, pages: addresses of indexes, and of pages or folders with links."""

    indexes: tuple[str, ...] = field(repr=False)
    pages: tuple[str, ...] = field(repr=False)
    trusted: tuple[str, ...]
    """Hosts, or HOST:PORT, whose certificates are not checked."""
    verify: str | bool
    certificate: str | None
    proxy: str | None = field(repr=False)
    timeout: float

    def session(self) -> requests.Session:
        """Passwords come from the addresses, or from netrc."""
        session = requests.Session()
        session.verify, session.cert = self.verify, self.certificate
        if self.proxy:
            session.proxies = {"http": self.proxy, "https": self.proxy}
        for trusted in self.trusted:
            session.mount(f"https://{trusted}" + ("/" if ":" in trusted else ""), _Unverified())
        return session


class _Unverified(HTTPAdapter):
    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        super().cert_verify(conn, url, False, cert)


def host(address: str) -> str:
    """All of an address that may be shown."""
    return urlsplit(address).hostname or "this machine"


def pip_settings() -> Settings:
    """pip's settings of this environment.

    Raises:
        IndexTrouble: pip is not installed here.
    """
    told = _pip("-m", "pip", "config", "list")
    found: dict[str, dict[str, str]] = {scope: {} for scope in SCOPES}
    for line in told.splitlines():
        key, _, value = line.partition("=")
        scope, _, name = key.rpartition(".")
        if scope in found:
            found[scope][name] = str(ast.literal_eval(value))
    given = {name: value for scope in SCOPES for name, value in found[scope].items()}
    lacking = given.get("no-index", "").lower() in ("1", "true", "yes", "on")
    indexes = () if lacking else (given.get("index-url") or _pip("-c", DEFAULT).strip(), *given.get("extra-index-url", "").split())
    pages, trusted = (tuple(given.get(name, "").split()) for name in ("find-links", "trusted-host"))
    timeout = float(given.get("timeout") or given.get("default-timeout") or TIMEOUT)
    return Settings(indexes, pages, trusted, given.get("cert") or True, given.get("client-cert"), given.get("proxy"), timeout)


def _pip(*asked: str) -> str:
    done = subprocess.run([sys.executable, *asked], capture_output=True, text=True, check=False)
    if done.returncode:
        raise IndexTrouble("pip, whose settings say where packages lie, is not installed in this environment (python -m ensurepip)")
    return done.stdout


def wheel_link(session: requests.Session, settings: Settings, package: str) -> Link:
    """The wheel for any machine of NAME==VERSION, from the first place that has it.

    Raises:
        IndexTrouble: none has it, or none answers.
    """
    name, _, version = package.partition("==")
    trouble = None
    for page in (*settings.pages, *(f"{index.rstrip('/')}/{canonicalize_name(name)}/" for index in settings.indexes)):
        try:
            found = [link for link in _links(session, page, settings.timeout) if _is_wheel(link.name, name, version)]
        except IndexTrouble as error:
            trouble = error
            continue
        if found:
            return found[0]
    hosts = ", ".join(dict.fromkeys(map(host, settings.indexes))) or "none is set"
    raise trouble or IndexTrouble(f"no wheel of {package} in pip's indexes ({hosts})")


def _is_wheel(file: str, name: str, version: str) -> bool:
    try:
        found, at, _, tags = parse_wheel_filename(file)
    except InvalidWheelFilename:
        return False
    return found == canonicalize_name(name) and at == Version(version) and any(tag.platform == "any" for tag in tags)


def _links(session: requests.Session, page: str, timeout: float) -> list[Link]:
    """Every link of a page or folder; none where there is no such page."""
    if "://" not in page or page.startswith("file:"):
        folder = Path(url2pathname(urlsplit(page).path) if page.startswith("file:") else page).expanduser()
        if (folder / "index.html").is_file():
            return _of_html((folder / "index.html").read_text(), folder.as_uri() + "/")
        files = sorted(folder.glob("*.whl")) if folder.is_dir() else []
        return [Link(file.name, None, file, None) for file in files]
    try:
        with session.get(page, headers={"Accept": ACCEPT}, timeout=timeout, stream=True) as answer:
            if answer.status_code == 404:
                return []
            if answer.status_code != 200:
                raise IndexTrouble(f"the package index at {host(page)} answers {answer.status_code} {answer.reason}")
            content = answer.raw.read(PAGE, decode_content=True).decode(errors="replace")
            kind, address = answer.headers.get("Content-Type", ""), answer.url
    except (requests.RequestException, OSError) as error:
        raise IndexTrouble(f"the package index at {host(page)} cannot be reached ({type(error).__name__})") from None
    return _of_json(content, _with_password(page, address)) if "json" in kind else _of_html(content, _with_password(page, address))


def _with_password(asked: str, answered: str) -> str:
    """The address that answered, with the user and password of the one that was asked where both are of one host."""
    before, after = urlsplit(asked), urlsplit(answered)
    same = (before.scheme, before.hostname, before.port) == (after.scheme, after.hostname, after.port)
    return after._replace(netloc=before.netloc).geturl() if same else answered


def _of_json(content: str, page: str) -> list[Link]:
    try:
        files: list[dict[str, Any]] = json.loads(content)["files"]
        return [_link(file["filename"], urljoin(page, file["url"]), file.get("hashes", {}).get("sha256"), page) for file in files]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IndexTrouble(f"the package index at {host(page)} answers something else than a list of files") from None


def _of_html(content: str, page: str) -> list[Link]:
    addresses: list[str] = []

    class Anchors(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "a" and (href := dict(attrs).get("href")):
                addresses.append(urljoin(page, href))

    Anchors().feed(content)
    plain = [urldefrag(address) for address in addresses]
    return [
        _link(unquote(address.rpartition("/")[2]), address, part.removeprefix("sha256=") if part.startswith("sha256=") else None, page)
        for address, part in plain
    ]


def _link(name: str, address: str, sha256: str | None, page: str) -> Link:
    if address.startswith("file:"):
        return Link(name, None, Path(url2pathname(urlsplit(address).path)), sha256)
    return Link(name, _with_password(page, address), None, sha256)
