"""Pictures and a check for schemathesis: among bytes of all sorts, a form's files are photographs of people, so that calls get
beyond the decoder; with a token of few scopes, calls are refused as the document says."""

import os
import re
from pathlib import Path

import schemathesis
from hypothesis import strategies as st

folder = Path(os.environ["FACEPIPE_PHOTOGRAPHS"])
photographs = [path.read_bytes() for path in sorted(folder.glob("*/*_0001.jpg"))[:3]]

schemathesis.openapi.format("binary", st.one_of(st.sampled_from(photographs), st.binary(max_size=64)))

# The scope of the token of this run, `none` for a run without a token; unset for everything.
scope = os.environ.get("TOKEN_SCOPE")


@schemathesis.check
def scope_of_the_document(context, response, case):
    """A call is refused if the document names another scope than the token's, and only then."""
    operation = case.operation.definition.raw
    if scope is None or operation.get("security") == [] or case.method.upper() != case.operation.method.upper():
        return
    needed = re.search(r"Scope: `(\w+)`", operation["description"])[1]
    status = response.status_code
    if scope == "none":
        # 429 after many failed authentications from one address.
        assert status in (401, 429), f"{status} without a token"
    elif needed == scope:
        assert status not in (401, 403), f"{status} to a token with the scope {scope}, which the call needs"
    else:
        assert status == 403, f"{status} to a token with the scope {scope}, and the call needs {needed}"
