#!/usr/bin/env bash
# unit.sh: prints the service as the package has it.
set -euo pipefail
exec sed -e '1s|:.*|. Settings: /etc/facepipe/backend.env.|' \
    -e 's|^ExecStart=/usr/local/bin/|ExecStart=/usr/bin/|' \
    -e 's|^Documentation=|Documentation=man:facepipe-backend(8) |' \
    "$(dirname "$0")/../deploy/systemd/facepipe-backend.service"
