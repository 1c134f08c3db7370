"""Pictures for schemathesis: among bytes of all sorts, a form's files are photographs of people, so that calls get
beyond the decoder."""

import os
from pathlib import Path

import schemathesis
from hypothesis import strategies as st

folder = Path(os.environ["FACEPIPE_PHOTOGRAPHS"])
photographs = [path.read_bytes() for path in sorted(folder.glob("*/*_0001.jpg"))[:3]]

schemathesis.openapi.format("binary", st.one_of(st.sampled_from(photographs), st.binary(max_size=64)))
