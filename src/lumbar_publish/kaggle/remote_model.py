"""The bundle as a version of a Kaggle Model: the same questions and the same evidence as of a dataset, and its card.

A model (``owner/slug``, which has the card) has one variation (``owner/slug/pyTorch/default``, which has versions).
Creating the variation creates its first version.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lumbar.bundle.manifest import FILE_NAME as MANIFEST
from lumbar_publish.kaggle.client import LONG_S, Client, KaggleError, Reply, Trouble
from lumbar_publish.kaggle.kaggle_process import MODEL_FILE
from lumbar_publish.kaggle.remote_dataset import downloaded_hash, list_files, missing_files
from lumbar_publish.names import DatasetId
from lumbar_publish.sealing.metadata import bundle_sources, write_json
from lumbar_publish.sealing.model_card import MODEL_METADATA, VARIATION_METADATA, write_model_metadata
from lumbar_publish.sealing.seal import read_json

# Parts of the card that follow the bundle; title, privacy and licence stay as their owner may have changed them.
_CARD_FIELDS = {MODEL_METADATA: ("description", "subtitle"), VARIATION_METADATA: ("overview", "usage")}
_NAME_FIELDS = ("ownerSlug", "slug", "modelSlug", "instanceSlug", "framework")


@dataclass(frozen=True)
class ModelStore:
    """The model of a bundle (``store.Store``)."""

    client: Client
    bundle: DatasetId
    kind: ClassVar[str] = "model"
    taken: ClassVar[str] = "Your model instance (?:version )?was created"
    # "it seems the archive does eventually decompress" (Kaggle/kagglehub #103), after the version is shown
    unpacking_limit_s: ClassVar[float] = 3600.0

    @property
    def name(self) -> str:
        """``owner/slug/framework/variation``."""
        return self.bundle.variation

    @property
    def page(self) -> str:
        """Its page on Kaggle."""
        return f"kaggle.com/models/{self.bundle.model}"

    def prepare(self, sealed: Path) -> None:
        """Write what the client reads beside the sealed bundle."""
        write_model_metadata(sealed, self.bundle)

    def is_ready(self) -> bool | None:
        """Whether the variation is there; None when it is not, or is not shown to us.

        A version that is being processed blocks no further one (Kaggle/kagglehub #108), and is not shown.

        Raises:
            KaggleError: no answer.
        """
        return None if self._current() is None else True

    def newest_hash(self) -> str | None:
        """Manifest hash of the newest version that Kaggle serves; None without one.

        Raises:
            KaggleError: no answer, or a refusal that leaves open what is there.
        """
        number = self._current()
        if not number:
            return None
        with tempfile.TemporaryDirectory(prefix="lumbar-remote-") as scratch:
            try:
                self.client.ask(MODEL_FILE, f"{self.name}/{number}", MANIFEST, str(Path(scratch, MANIFEST)))
            except KaggleError as error:
                if error.trouble in (Trouble.MISSING, Trouble.FORBIDDEN):
                    return None
                raise
            return downloaded_hash(self.name, Path(scratch))

    def missing_files(self, sealed: Path) -> list[str]:
        """Files of the sealed folder that Kaggle does not list unpacked, and weights that it lists cut short.

        Raises:
            KaggleError: no answer.
        """
        version = f"{self.name}/{self.version()}"
        listed = list_files(self.client, "models", "variations", "versions", "files", version)
        return missing_files(listed, sealed, has_archives=False)

    def version(self) -> int:
        """Number of the newest version that is processed.

        Raises:
            KaggleError: no answer, or no version.
        """
        number = self._current()
        if not number:
            raise KaggleError(f"model {self.name}: Kaggle shows no version of it: run this again")
        return number

    def sources(self) -> dict[str, list[str]]:
        """The fields of the notebook's metadata that attach it, in its newest version."""
        return bundle_sources(self.bundle, self.version())

    def upload(self, exists: bool, notes: str, folder: Path, scratch: Path) -> Reply:
        """Create the model where there is none, then its variation or a version of it from what lies in ``folder``.

        Raises:
            KaggleError: the model was not created; what is said of the version is the caller's to believe.
        """
        if not exists:
            self._create_model(folder)
            reply = self._send(("create", "-p", "."), folder, scratch)
            # else it is there, and no version of it was processed yet (409 in models_helpers.py of kagglehub)
            if not re.search(r"creation error: .*exists", reply.out):
                return reply
        return self._send(("versions", "create", self.name, "-p", ".", "-n", notes), folder, scratch)

    def complete(self, sealed: Path) -> None:
        """Let the card say what the newest version is.

        Raises:
            KaggleError: Kaggle kept the old one.
        """
        for command, name, file in (
            (("models",), self.bundle.model, MODEL_METADATA),
            (("models", "variations"), self.name, VARIATION_METADATA),
        ):
            ours, fields = read_json(sealed / file), _CARD_FIELDS[file]
            theirs = _shown(self.client.ask(*command, "get", name))
            if all(_words(ours.get(field)) == _words(theirs.get(field)) for field in fields):
                continue
            changed = {field: ours[field] for field in (*_NAME_FIELDS, *fields) if field in ours}
            # the client sends a licence whatever is changed: the one that is there
            changed |= {"licenseName": theirs["licenseName"]} if theirs.get("licenseName") else {}
            with tempfile.TemporaryDirectory(prefix="lumbar-remote-") as scratch:
                write_json(Path(scratch) / file, changed)
                reply = self.client.act(*command, "update", "-p", scratch)
            if "was updated" not in reply.out:
                raise reply.error(f"the card of {name} was not updated: mend that, then run this again")

    def _current(self) -> int | None:
        """Number of the version that Kaggle serves, 0 while none is processed; None without a variation."""
        try:
            reply = self.client.ask("models", "variations", "get", self.name)
        except KaggleError as error:
            if error.trouble in (Trouble.MISSING, Trouble.FORBIDDEN):  # Kaggle does not say which
                return None
            raise
        return int(_shown(reply).get("versionNumber") or 0)

    def _create_model(self, folder: Path) -> None:
        try:
            self.client.ask("models", "get", self.bundle.model)
            return
        except KaggleError as error:
            if error.trouble not in (Trouble.MISSING, Trouble.FORBIDDEN):
                raise
        reply = self.client.act("models", "create", "-p", str(folder))
        if "Your model was created" not in reply.out:
            raise reply.error("the model was not created: mend that, then run this again")

    def _send(self, command: tuple[str, ...], folder: Path, scratch: Path) -> Reply:
        return self.client.act(
            "models", "variations", *command, limit_s=LONG_S, progress=True, check=False, folder=folder, scratch=scratch
        )


def _shown(reply: Reply) -> dict[str, Any]:
    """What ``get`` prints, a JSON object (with ``-p`` it would write it, and fail over a date).

    Raises:
        KaggleError: it printed none.
    """
    start = re.search(r"^\{", reply.out, re.MULTILINE)
    try:
        shown = json.JSONDecoder().raw_decode(reply.out[start.start() :])[0] if start else None
    except ValueError:
        shown = None
    if not isinstance(shown, dict):
        raise reply.error("no description of the model: run this again")
    return shown


def _words(text: Any) -> str:
    """A card's text as it is compared: Kaggle may wrap it differently."""
    return " ".join(str(text or "").split())
