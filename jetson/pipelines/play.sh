#!/usr/bin/env bash
# Plays a source of any kind with the script for it. The service runs this script. Takes the arguments of the chosen script.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case ${1-} in
    csi:*) script=csi.sh ;;
    rtsp*://* | http://* | https://*) script=rtsp.sh ;;
    /dev/*) script=webcam.sh ;;
    '' | -*)
        echo "Usage: play.sh rtsp://CAMERA/PATH | http://CAMERA/PATH | csi:N | /dev/videoN | FILE [options of rtsp.sh, csi.sh, webcam.sh, file.sh]" >&2
        exit 2 ;;
    *) script=file.sh ;;
esac
exec "$folder/$script" "$@"
