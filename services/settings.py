"""Settings of the installation, from ``SPARRING_*`` environment variables."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from learner.errors import InputError

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-fA-F:]+\](:\d{1,5})?")


class Settings(BaseSettings):
    """Where Sparring keeps its data, where it listens, and what it may do."""

    model_config = SettingsConfigDict(env_prefix="SPARRING_", frozen=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(default=Path("~/.sparring"), validate_default=True, description="Sparring's data.")
    database_url: str | None = Field(default=None, description="The job store. Default: sparring.sqlite in home.")
    database_password_file: Path | None = Field(default=None, description="A file that holds database_password.")
    database_password: SecretStr | None = Field(
        default=None, validate_default=True, description="Of database_url's user, where the address does not say it."
    )
    host: str = Field(default="127.0.0.1", description="Where the service listens.")
    port: int = Field(default=8700, ge=0, le=65535, description="0: a free port.")
    api_key_file: Path | None = Field(default=None, description="A file that holds api_key.")
    api_key: SecretStr | None = Field(
        default=None, validate_default=True, description="Bearer key of the REST API. Required off loopback."
    )
    url: str | None = Field(default=None, description="The service that the command line and the client talk to.")
    ray_address: str | None = Field(
        default=None, description="A running Ray cluster. Without it a local one is started."
    )
    data_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="Further folders that jobs sent over REST may read, separated by colons."
    )
    max_running_jobs: int = Field(default=1, ge=1, description="Jobs that the service runs at a time; others wait.")
    max_job_restarts: int = Field(
        default=2, ge=0, description="Restarts of a job whose controller died, before it fails."
    )
    max_body_bytes: int = Field(default=4 << 20, ge=1024, description="Largest body of a request.")
    rate_limit: str = Field(
        default="6000/minute", description="Requests of one key, or of one address without a key; streams count beside."
    )
    max_concurrent_requests: int = Field(default=100, ge=1, description="Requests that are answered at the same time.")
    max_streams: int = Field(default=500, ge=1, description="Event streams and open dashboard pages at the same time.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Origins whose pages may use the REST API, separated by commas. Default: none."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="The service's own log on stderr: lines for people, or JSON with the request's id."
    )
    start_timeout_seconds: float = Field(default=300, gt=0, description="Longest wait for a job's controller to start.")

    chat_places: int = Field(
        default=1,
        ge=0,
        description="Jobs at a time that get a sampler for chat alone, where their own take no chat. 0: none.",
    )
    chat_idle_seconds: float = Field(
        default=300, gt=0, description="A sampler for chat alone ends when nobody has used it for so long."
    )
    chat_slots: int = Field(default=8, ge=1, le=64, description="Requests that such a sampler takes at a time.")

    worker_extension: str | None = Field(
        default=None, description="vLLM's worker extension, where the operator replaces Sparring's own."
    )

    @field_validator("home")
    @classmethod
    def _home_is_absolute(cls, value: Path) -> Path:
        return _expanded(value).absolute()

    @field_validator("api_key_file", "database_password_file")
    @classmethod
    def _file_holds_a_secret(cls, value: Path | None) -> Path | None:
        if value is not None:
            _secret(value)
        return value

    @field_validator("api_key", "database_password", mode="before")
    @classmethod
    def _secret_or_its_file(cls, value: object, info: ValidationInfo) -> object:
        file = info.data.get(f"{info.field_name}_file")
        return _secret(file) if value is None and file is not None else value

    @field_validator("data_roots", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("data_roots")
    @classmethod
    def _roots_are_absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(_expanded(path).resolve() for path in value)

    @field_validator("rate_limit")
    @classmethod
    def _rate_is_readable(cls, value: str) -> str:
        from limits import parse  # only where a rate is given; the default is one

        try:
            parse(value)
        except ValueError:
            raise ValueError("a rate reads like 600/minute or 10/second") from None
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; write each like https://app.example.org, without a path or *"
                )
        return value

    @classmethod
    def load(cls) -> Settings:
        """The settings of this process's environment.

        Raises:
            InputError: a variable has a value that it cannot have.
        """
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            name = "SPARRING_" + str(first["loc"][0]).upper() if first["loc"] else "SPARRING_*"
            raise InputError(f"{name}: {first['input']!r} is not allowed: {first['msg']}") from None

    def make_home(self) -> None:
        """Make the folder of Sparring's data where it is not there yet.

        Raises:
            InputError: it cannot be made.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"SPARRING_HOME: {self.home} cannot be made ({error.strerror}); name a folder that this user may write to"
            ) from None

    @property
    def store_url(self) -> str:
        """The job store's database, its password included."""
        if self.database_url is None or self.database_password is None:
            return self.database_url or f"sqlite:///{self.home / 'sparring.sqlite'}"
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self.database_url).set(password=self.database_password.get_secret_value())
        except ArgumentError:
            return self.database_url  # the store says what is wrong with it
        return url.render_as_string(hide_password=False)

    @property
    def readable_roots(self) -> tuple[Path, ...]:
        """Folders that jobs sent over REST may read: home, the working folder, and those that the operator adds (rule 16)."""
        return (self.home.resolve(), Path.cwd().resolve(), *self.data_roots)

    @property
    def local_url(self) -> str:
        """Where a service of this machine answers by default."""
        return f"http://{'127.0.0.1' if self.host in ('', '0.0.0.0', '::') else self.host}:{self.port}"

    def check_exposure(self, any_good_key: Callable[[], bool]) -> None:
        """Refuse to listen to other machines without a key (rule 16).

        Args:
            any_good_key: asks the store whether it has a key that is neither revoked nor expired; called only where it matters.

        Raises:
            InputError: the host is not loopback, and there is no key.
        """
        if self.api_key is None and not is_loopback(self.host) and not any_good_key():
            raise InputError(
                f"SPARRING_HOST: {self.host!r} lets other machines in, so there must be a key; make one with "
                "`sparring keys create NAME --scope admin`, set SPARRING_API_KEY, or listen on 127.0.0.1"
            )


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("there is no such user's home; write the whole path") from None


def _secret(file: Path) -> str:
    """What a mounted secret holds, without the line's end."""
    try:
        text = _expanded(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"it cannot be read ({reason}); put the secret there, readable for this user") from None
    if not text:
        raise ValueError("the file is empty; put the secret there")
    return text


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
