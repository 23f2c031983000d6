"""Read the names of bundles in registries: ``oci://HOST/REPOSITORY:TAG``, an address of fsspec, or a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from flowedge.errors import RegistryError
from flowedge.text import printable

OCI: Final = "oci://"
_HOST: Final = r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?"
# The names that the OCI distribution specification 1.1 allows.
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE: Final = re.compile(
    rf"oci://(?P<host>{_HOST})/(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_LONGEST: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class OciReference:
    """The name of an artefact in an OCI registry.

    Attributes:
        host: The host, with its port where it has one.
        repository: The name of the repository.
        tag: The tag, by default ``latest``.
        digest: The digest of the artefact's manifest, which comes before the tag. The text is empty without one.
    """

    host: str
    repository: str
    tag: str = "latest"
    digest: str = ""

    @property
    def name(self) -> str:
        """The tag or the digest, as the distribution protocol takes it."""
        return self.digest or self.tag

    def __str__(self) -> str:
        end = f"@{self.digest}" if self.digest else f":{self.tag}"
        return f"{OCI}{self.host}/{self.repository}{end}"


def oci_reference(text: str) -> OciReference:
    """Read the name of an artefact.

    Raises:
        RegistryError: The text is no such name.
    """
    found = _REFERENCE.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        raise RegistryError(
            f"{printable(text[:200])} is no name in a registry. Such a name is oci://HOST/REPOSITORY:TAG or "
            "oci://HOST/REPOSITORY@sha256:DIGEST, with a repository in small letters."
        )
    return OciReference(
        host=found["host"],
        repository=found["repository"],
        tag=found["tag"] or "latest",
        digest=found["digest"] or "",
    )


def last_part(reference: str) -> str:
    """Return the name of the bundle in a reference, for a folder of that name. The text is empty where it has none."""
    is_oci = reference.startswith(OCI)
    name = oci_reference(reference).repository if is_oci else reference.partition("?")[0]
    name = name.rstrip("/").rpartition("/")[2]
    return name if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name) else ""
