"""Define signed text: a UTF-8 text whose last line holds an Ed25519 signature over all lines before it.

People can read such a file, and a text and its signature cannot be torn apart, since both are one file. The signed
bytes are those of DSSE (https://github.com/secure-systems-lab/dsse, protocol.md, "pre-authentication encoding"): they
begin with the kind of the text, so that a signature over a bundle is none over a rollout.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, NamedTuple

MOST_BYTES: Final = 1 << 16
_MARK: Final = b"# signature: "
_SIGNATURE: Final = re.compile(rb"# signature: ([A-Za-z0-9+/]{86}==)\n\Z")


class SignedText(NamedTuple):
    """A text and the signature in its last line, which nobody has checked yet.

    Attributes:
        body: The bytes of all lines before the last one.
        signature: The 64 bytes of the signature.
    """

    body: bytes
    signature: bytes


def split_signed_text(content: bytes) -> SignedText:
    """Split the content of a file of signed text into its body and its signature.

    Raises:
        ValueError: The content is larger than 64 KiB or has no signature in its last line. The message completes "the
            file ".
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"has more than {MOST_BYTES} bytes, the most that a signed text may have")
    start = content.rfind(b"\n" + _MARK) + 1
    found = _SIGNATURE.fullmatch(content[start:]) if start else None
    if found is None:
        raise ValueError("has no signature in its last line")
    try:
        signature = base64.b64decode(found[1], validate=True)
    except binascii.Error as error:
        raise ValueError("has a signature that is no base64") from error
    return SignedText(content[:start], signature)


def join_signed_text(body: bytes, signature: bytes) -> bytes:
    """Return the content of a file of signed text.

    Args:
        body: The text, which ends with a line break.
        signature: The 64 bytes of the signature over `signed_bytes`.
    """
    assert body.endswith(b"\n")
    return body + _MARK + base64.b64encode(signature) + b"\n"


def signed_bytes(kind: str, body: bytes) -> bytes:
    """Return the bytes that a signature is made over.

    Args:
        kind: The kind of the text, a media type.
        body: The bytes of the text.
    """
    name = kind.encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(body), body)
